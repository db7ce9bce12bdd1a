"""Compile gates: what the compiler makes of the GPU kernels, on a machine without a GPU, and whether it may.

    python -m llmquant.kernels.bench.gates --quick --json gates.json   # what CI runs: sm_80, sm_90, sm_100
    python -m llmquant.kernels.bench.gates --json gates.json           # every case, every architecture
    python -m llmquant.kernels.bench.gates --arch sm_90 --kernel a16   # some; --kernel is part of a kernel's name

A kernel that is right can still be slow by a multiple because of one line: weights that take the way through shared
memory, conversions on the slow pipe, registers that spill, a wait after every multiplication. All of that shows in the
machine code. Exit code 1 where a gate fails. cases.py holds the cases, limits.py what they are allowed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from llmquant.kernels.bench.common.facts import available_cores, write_json
from llmquant.kernels.bench.gates.cases import QUICK_ARCHS, cases
from llmquant.kernels.bench.gates.compile import Case, Row, measure
from llmquant.kernels.bench.gates.limits import CARDS, limits
from llmquant.kernels.gpu import runtime
from llmquant.machine import versions

if TYPE_CHECKING:
    from rich.table import Table

_MOST_WORKERS = 8  # of half a GB each


def run(chosen: Sequence[Case]) -> list[Row]:
    """Compile cases, past Triton's cache; rows as of compile.measure, with limits and failures."""
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    workers = min(available_cores(), _MOST_WORKERS)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, TRITON_CACHE_DIR=folder),
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        rows = list(pool.map(measure, chosen))
    for row, case in zip(rows, chosen, strict=True):
        allowed = limits(case, version)
        row["limits"] = {name: value for name, value in asdict(allowed).items() if value is not None}
        row["failures"] = allowed.failures(row)
    return rows


def table(rows: Sequence[Row]) -> Table:
    """Rows for people, worst last."""
    from rich.table import Table

    made = Table(title="what the compiler makes of the GPU kernels")
    for name in ("kernel", "case", "config", "arch"):
        made.add_column(name)
    for name in ("regs", "spills", "shared", "tensor (A in regs)", "PRMT", "loop", "waits", "per 1000", "s", "gate"):
        made.add_column(name, justify="right")
    for row in sorted(rows, key=lambda row: bool(row["failures"])):
        kind = max(("wgmma", "tcgen05", "mma_sync", "mfma"), key=lambda kind: row.get(kind, 0))
        registers = f" ({row['wgmma_a_in_registers']})" if row.get("wgmma") else ""
        tensor, loop = f"{row[kind]} {kind}{registers}" if row.get(kind) else None, row.get("loop") or {}
        values = [row.get("registers"), row.get("spills"), row.get("shared"), tensor, loop.get("prmt")]
        values += [loop.get("instructions"), loop.get("waits"), loop.get("issue"), row.get("seconds")]
        cells = ("-" if value is None else str(value) for value in values)
        gate = "[red]fails[/]" if row["failures"] else "ok"
        made.add_row(row["kernel"], row["case"], row["config"], row["arch"], *cells, gate)
    return made


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
        write_json(args.json, {"versions": versions(("llmquant", "triton", "torch")), "rows": rows})
    sys.exit(report(rows))


if __name__ == "__main__":
    main()
