"""From what was measured to rows of the result: one per kernel, layer and number of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from statistics import median
from typing import Any

from llmquant.kernels.bench.contender import Shape
from llmquant.kernels.bench.gpu_cases import Cell
from llmquant.kernels.bench.gpu_floor import Ceilings
from llmquant.kernels.bench.gpu_kernel import CUBLAS, OURS, Kernel
from llmquant.kernels.bench.gpu_timing import Call, Times, summary

Row = dict[str, Any]


@dataclass
class Measured:
    """A kernel in a cell.

    Attributes:
        kernel: which.
        error: of its result; None if there was none.
        problem: what is wrong with its result, in words; it is not timed then.
        calls: one for each copy of its weight.
        describe: how it runs.
        failed: why it was not timed, if its result is not the reason.
        times: of its calls.
        again: of cuBLAS, the times at the end of each round.
    """

    kernel: Kernel
    error: float | None = None
    problem: str | None = None
    calls: list[Call] = field(default_factory=list)
    describe: dict[str, Any] = field(default_factory=dict)
    failed: str | None = None
    times: Times = field(default_factory=Times)
    again: tuple[float, ...] = ()


def rows_of(
    found: list[Measured],
    cell: Cell,
    shape: Shape,
    ceilings: Ceilings | None,
    bytes_of: Callable[[Kernel, Shape], int],
) -> list[Row]:
    """The rows of a cell; times only where they were measured, ratios only where both sides were.

    Args:
        found: kernels of the cell.
        cell: the cell.
        shape: of its weight.
        ceilings: of the machine; None where nothing is timed.
        bytes_of: what a kernel reads of its weight.
    """
    dense = next((entry for entry in found if entry.kernel.owner == CUBLAS and entry.times.chain), None)
    dense_us = median([*dense.times.chain, *dense.again]) if dense else None
    rows = []
    for entry in found:
        kernel, times = entry.kernel, entry.times
        weight_bytes = bytes_of(kernel, shape)
        row: Row = {
            "kernel": kernel.owner, "format": kernel.form, "variant": kernel.variant, "name": kernel.name,
            "layer": cell.layer, "n": shape.n, "k": shape.k, "m": cell.m, "beside_peers": cell.peers,
            "weight_bytes": weight_bytes, "bits": round(8 * weight_bytes / shape.n / shape.k, 3),
            "error": finite(entry.error), "problem": entry.problem, "failed": entry.failed, "copies": len(entry.calls),
        } | entry.describe  # fmt: skip
        row |= summary(times.chain, "us") | summary(times.cold, "cold_us") | summary(times.eager, "eager_us")
        row |= summary(entry.again, "again_us")
        if ceilings and times.chain:
            row |= _against(row, shape, ceilings, 16 if kernel.owner == CUBLAS else kernel.format.activations)
        if dense_us and times.chain and kernel.owner != CUBLAS:
            row["x_cublas"] = round(dense_us / row["us"], 4)
        rows.append(row)
    _add_best_peers(rows)
    return rows


def finite(number: float | None) -> float | None:
    """A number that JSON has; None for others."""
    return number if number is not None and isfinite(number) else None


def _against(row: Row, shape: Shape, ceilings: Ceilings, activations: int) -> Row:
    """Speed, and shares of what is possible."""
    given = (shape, row["m"], row["weight_bytes"], activations)
    moved = row["weight_bytes"] + 2 * row["m"] * (shape.n + shape.k)
    floor = ceilings.floor_us(*given)
    return {
        "tbs": round(moved / row["us"] / 1e6, 4),
        "tflops": round(2 * row["m"] * shape.n * shape.k / row["us"] / 1e6, 2),
        "floor_us": round(floor, 3),
        "floor_share": round(floor / row["us"], 4),
        "limit_x_cublas": round(ceilings.limit(*given), 3),
    }


def _add_best_peers(rows: list[Row]) -> None:
    """Beside each of ours, the fastest of others in the same format that computes the right thing."""
    for row in rows:
        if row["kernel"] != OURS or "us" not in row:
            continue
        others = [
            other for other in rows
            if other["format"] == row["format"] and other["kernel"] != OURS and "us" in other
        ]  # fmt: skip
        best = min(others, key=lambda other: other["us"], default=None)
        if best:
            row |= {"best_peer": best["name"], "x_best_peer": round(best["us"] / row["us"], 4)}


def failures(rows: list[Row], sweep: list[Row]) -> list[str]:
    """What is wrong with our kernels, in words: each makes the run fail.

    Args:
        rows: of all cells.
        sweep: cases of the sweep, with their "problems".
    """
    found = [f"{case['case']}: {problem}" for case in sweep for problem in case["problems"]]
    for row in rows:
        if row["kernel"] == OURS:
            where = f"{row['name']} at {row['layer']} M={row['m']}"
            if row["problem"]:
                found.append(f"{where}: {row['problem']}")
            elif row["failed"] and not row["variant"]:  # a candidate that cannot run is no fault
                found.append(f"{where}: {row['failed']}")
    return found
