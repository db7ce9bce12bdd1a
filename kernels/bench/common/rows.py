"""From what was measured to rows of the result: one per kernel, weight, number of rows and thread count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmquant.kernels.bench.common.contender import DENSE, OURS, Call, Contender
from llmquant.kernels.bench.common.plan import Cell

Row = dict[str, Any]


@dataclass
class Sample:
    """Times of single calls."""

    us: list[float] = field(default_factory=list)  # microseconds of each; none where nothing is timed
    headline: float = 0.5  # quantile that is quoted: what disturbed least on a CPU, the median on a GPU
    nbytes: int = 0  # that a call reads of memory, where that is all it does
    more: dict[str, float] = field(default_factory=dict)  # other columns of the row

    def quantile(self, share: float) -> float:
        """Microseconds that this share of the calls stayed below."""
        return float(np.quantile(self.us, share))

    @property
    def quoted(self) -> float:
        """Microseconds."""
        return self.quantile(self.headline)

    @property
    def gigabytes_per_second(self) -> float:
        """The speed of a call that reads `nbytes`."""
        return self.nbytes / self.quoted / 1e3


@dataclass
class Entry:
    """A kernel in a cell."""

    contender: Contender
    error: float | None = None  # of its result; None if there was none
    problem: str | None = None  # what is wrong with its result, in words; it is not timed then
    calls: list[Call] = field(default_factory=list)  # one for each copy of its weight
    failed: str | None = None  # why it was not timed, if its result is not the reason
    times: Sample = field(default_factory=Sample)


def rows_of(entries: list[Entry], stream: Sample, cell: Cell, threads: int) -> list[Row]:
    """The rows of a cell; times only where they were measured, ratios only where both sides were.

    `stream` are reads of memory in the same turns.
    """
    dense = next((entry.times for entry in entries if entry.contender.kernel == DENSE and entry.times.us), None)
    rows = []
    for entry in entries:
        contender, times, shape = entry.contender, entry.times, cell.shape
        row: Row = {
            "kernel": contender.kernel, "scheme": contender.scheme, "mode": contender.mode, "name": contender.name,
            "m": cell.m, "n": shape.n, "k": shape.k, "threads": threads, "weight_bytes": contender.weight_bytes,
            "bits": round(8 * contender.weight_bytes / shape.n / shape.k, 3),
            "error": entry.error, "problem": entry.problem, "failed": entry.failed, "calls": len(times.us),
        }  # fmt: skip
        if times.us:
            us = times.quoted
            row |= {"us": round(us, 3), "us_median": round(times.quantile(0.5), 3)}
            row |= {"us_q90": round(times.quantile(0.9), 3), "stream_gbs": round(stream.gigabytes_per_second, 2)}
            row["stream_share"] = round(contender.weight_bytes / us / 1e3 / stream.gigabytes_per_second, 4)
            row |= {name: round(value, 3) for name, value in times.more.items()}
            if dense:
                row["x_dense"] = round(dense.quoted / us, 4)
        rows.append(row)
    for row in rows:
        if row["kernel"] == OURS and "us" in row and (best := _best_peer(row, rows)):
            row |= {"best_peer": best["name"], "x_best_peer": round(best["us"] / row["us"], 4)}
    return rows


def _best_peer(row: Row, group: list[Row]) -> Row | None:
    """The fastest kernel of others that is quantized to about as many bits, in the same cell."""
    peers = [
        other for other in group
        if other["kernel"] != OURS and "us" in other
        and (row["bits"] < 6) == (other["bits"] < 6) and other["bits"] < 12
    ]  # fmt: skip
    return min(peers, key=lambda other: other["us"], default=None)


def failures(rows: list[Row]) -> list[str]:
    """What is wrong with our kernels, in words: each makes the run fail."""
    return [
        f"{row['name']} at {row['n']}x{row['k']} M={row['m']}: {row['problem'] or row['failed']}"
        for row in rows
        if row["kernel"] == OURS and (row["problem"] or row["failed"])
    ]
