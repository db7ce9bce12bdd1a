"""Compile gates: what the compiler makes of the GPU kernels, on a machine without a GPU, and whether it may.

    python -m llmquant.kernels.bench.gates --quick --json gates.json   # what CI runs: sm_80, sm_90, sm_100
    python -m llmquant.kernels.bench.gates --json gates.json           # every case, every architecture
    python -m llmquant.kernels.bench.gates --arch sm_90 --kernel a16   # some; --kernel is part of a kernel's name

A kernel that is right can still be slow by a multiple because of one line: weights that take the way through shared
memory, conversions on the slow pipe, registers that spill, a wait after every multiplication. All of that shows in the
machine code. Exit code 1 where a gate fails. cases.py holds the cases and what they are allowed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from llmquant.kernels.bench.common.facts import available_cores
from llmquant.kernels.bench.gates.cases import CARDS, QUICK_ARCHS, cases
from llmquant.kernels.bench.gates.compile import Case, Limits, Row, measure
from llmquant.kernels.gpu import runtime

if TYPE_CHECKING:
    from rich.table import Table

_MOST_WORKERS = 8  # of half a GB each


def run(chosen: Sequence[Case]) -> list[Row]:
    """Compile cases, past Triton's cache; rows as of compile.measure, with limits and failures."""
    workers = min(available_cores(), _MOST_WORKERS)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, TRITON_CACHE_DIR=folder),
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        rows = list(pool.map(measure, chosen))
    for row, case in zip(rows, chosen, strict=True):
        row["limits"] = {name: value for name, value in asdict(case.limits).items() if value is not None}
        row["failures"] = failures(row, case.limits)
    return rows


def failures(row: Row, limits: Limits) -> list[str]:
    """What a compiled kernel is that it may not be, each with what was got and what is allowed.

    Args:
        row: as of compile.measure.
        limits: of its case.
    """
    if "error" in row:
        return [f"does not compile: {row['error']}"]
    loop = row["loop"] or {}
    most = {
        "spills": (row["spills"], limits.spills),
        "spills in the loop": (loop.get("local"), 0),
        "bytes of stack": (row["stack"], 0),
        "registers": (row["registers"], register_cap(row["arch"], limits.programs, row["warps"])),
        "bytes of shared memory": (row["shared"], shared_cap(row["arch"], limits.programs)),
        "PRMT in the loop": (loop.get("prmt"), limits.prmt),
        "integer conversions in the loop": (loop.get("conversions"), limits.conversions),
        "stores to shared memory in the loop": (loop.get("stores"), limits.stores),
        "waits for wgmma in the loop": (loop.get("waits"), limits.waits),
        "instructions in the loop for 1000 weights": (loop.get("issue"), limits.issue),
    }
    found = [
        f"{got:g} {what}, at most {allowed:g} allowed"
        for what, (got, allowed) in most.items()
        if got is not None and allowed is not None and got > allowed
    ]
    if limits.tensor and not row.get(limits.tensor):
        found.append(f"no {limits.tensor}")
    if limits.tensor and not loop:
        found.append("no loop with tensor-core instructions")
    for form in ("wgmma", "ptx_wgmma"):
        registers = row.get(f"{form}_a_in_registers")
        if limits.a_in_registers and registers != row.get(form):
            found.append(f"operand A from registers in {registers} of {row.get(form)} {form}, all required")
    return found


def register_cap(arch: str, programs: int, warps: int) -> int:
    """Registers a thread may have for so many programs in a multiprocessor."""
    if CARDS[arch].hip:  # each of four SIMDs has 512 for a lane, accumulators among them
        return 512 // -(-programs * warps // 4)
    return min(65536 // (programs * warps * 32) // 8 * 8, 255)  # they come in eights


def shared_cap(arch: str, programs: int) -> int:
    """Bytes of shared memory a program may have for so many programs in a multiprocessor."""
    return CARDS[arch].shared * 1024 // programs - (0 if CARDS[arch].hip else 1024)  # of each, CUDA takes 1 KB


def table(rows: Sequence[Row]) -> Table:
    """Rows for people, worst last."""
    from rich.table import Table

    made = Table(title="what the compiler makes of the GPU kernels")
    for name in ("kernel", "case", "config", "arch"):
        made.add_column(name)
    for name in ("regs", "spills", "shared", "tensor (A in regs)", "PRMT", "loop", "waits", "per 1000", "s", "gate"):
        made.add_column(name, justify="right")
    for row in sorted(rows, key=lambda row: bool(row["failures"])):
        gate = "[red]fails[/]" if row["failures"] else "ok"
        made.add_row(row["kernel"], row["case"], row["config"], row["arch"], *_cells(row), gate)
    return made


def _cells(row: Row) -> list[str]:
    if "error" in row:
        return ["-"] * 9
    kind = max(("wgmma", "tcgen05", "mma_sync", "mfma"), key=lambda kind: row.get(kind, 0))
    tensor = f"{row[kind]} {kind}" if row.get(kind) else "-"
    if row.get("wgmma"):
        tensor += f" ({row['wgmma_a_in_registers']})"
    loop = row["loop"] or {}
    values = [row["registers"], row["spills"], row["shared"], tensor, loop.get("prmt"), loop.get("instructions")]
    return [
        "-" if value is None else str(value)
        for value in (*values, loop.get("waits"), loop.get("issue"), row["seconds"])
    ]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="what the compiler makes of the GPU kernels, and whether it may")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--quick", action="store_true", help=f"the most important cases on {', '.join(QUICK_ARCHS)}")
    parser.add_argument("--arch", nargs="+", choices=tuple(CARDS))
    parser.add_argument("--kernel", help="only kernels or cases with this in their names")
    return parser.parse_args(arguments)


def main() -> None:
    """Command line."""
    args = parse()
    for name in ("TRITON_INTERPRET", runtime.VARIABLE):  # before triton is imported
        os.environ.pop(name, None)
    archs = args.arch or (QUICK_ARCHS if args.quick else tuple(CARDS))
    chosen = [case for case in cases(archs, quick=args.quick) if (args.kernel or "") in f"{case.kernel} {case.name}"]
    if not chosen:
        sys.exit(f"no case has {args.kernel!r} in its name")
    rows = run(chosen)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(facts() | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    sys.exit(report(rows))


def facts() -> dict[str, Any]:
    """Versions of what compiled."""
    import torch
    import triton

    return {"versions": {"triton": triton.__version__, "torch": torch.__version__}}


def report(rows: Sequence[Row]) -> int:
    """Print a table and the failures; the exit code."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(rows))
    for row in rows:
        name = " ".join(row[key] for key in ("kernel", "case", "config", "arch"))
        for failure in row["failures"]:
            console.print(f"{name}: {failure}", markup=False, highlight=False, soft_wrap=True)
    failing = sum(bool(row["failures"]) for row in rows)
    console.print(f"{len(rows)} cases, {failing} fail")
    return 1 if failing else 0


if __name__ == "__main__":
    main()
