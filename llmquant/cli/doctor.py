"""`llmquant doctor`: a diagnosis as text."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from llmquant.cli import arguments
from llmquant.words import bytes_text, escaped, number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from llmquant.doctor import Diagnosis
    from llmquant.doctor.facts import Gpus, Kernels
    from llmquant.machine import Threads
    from llmquant.memory import Memory

_TABLES = {"own": "tuned on this machine", "shipped": "with the table that ships", None: "by estimate, no table"}


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser("doctor", help="what this machine has, how fast it can be, and what to improve")
    arguments.json_target(parser, "everything")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Look, measure, write, show."""
    arguments.check_targets(args.json)
    from llmquant.doctor import diagnose

    found = diagnose()
    arguments.write_json(args.json, json.dumps(asdict(found), indent=2) + "\n")
    print_diagnosis(console, found)
    return 1 if found.broken else 0


def print_diagnosis(console: Console, found: Diagnosis) -> None:
    """Facts, the speed to expect, then what to do, most serious first."""
    console.print(f"[bold]{escaped(found.cpu)}[/], {escaped(found.system)}", highlight=False)
    console.print(_facts(found))
    console.print()
    console.print("[bold]decode speed to expect on the CPU[/]: at most so many tokens/s, which is bandwidth / bytes")
    console.print(_speeds(found))
    console.print("[dim]all weights in one format; layers that stay at 16 bits make it slower[/]\n")
    for each in found.advice:
        color = "red" if each.level == "error" else "yellow"
        console.print(f"[bold {color}]{each.level}:[/] {escaped(each.problem)}", highlight=False)
        console.print(f"  [bold]do:[/] {escaped(each.remedy)}", highlight=False)
    if not found.advice:
        console.print("[green]nothing to improve[/]")


def _facts(found: Diagnosis) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", min_width=18)
    table.add_column(overflow="fold")
    rows = (
        ("instruction set", _instructions(found.kernels)),
        ("C++ kernels", _library(found.kernels)),
        ("threads", _threads(found.threads)),
        ("memory", _memory(found.memory)),
        ("memory bandwidth", _bandwidth(found.bandwidth.gbs, found.bandwidth.method)),
        ("GPU", "; ".join(f"{escaped(gpu.name)}, {bytes_text(gpu.bytes)}" for gpu in found.gpus.devices) or "none"),
        ("GPU kernels", _gpu_kernels(found.gpus)),
        ("software", ", ".join(escaped(f"{name} {version}") for name, version in found.versions.items())),
    )
    for label, text in rows:
        table.add_row(label, text)
    return table


def _instructions(found: Kernels) -> str:
    from llmquant.kernels.cpu.native import ISA_VARIABLE

    override = f"{ISA_VARIABLE}={escaped(found.isa_override)}" if found.isa_override else f"{ISA_VARIABLE} is not set"
    available = f"available: {', '.join(found.available)}; " if found.available else ""
    name = {None: "[red]none[/]", "torch": "none, torch runs"}.get(found.in_use, f"[bold]{found.in_use}[/]")
    return f"{name}  [dim]({available}{override})[/]"


def _library(found: Kernels) -> str:
    if found.problem:
        return "[red]not usable, see below[/]"
    if found.library is None:
        return "[yellow]not installed[/]"
    return f"{escaped(found.library)}  [dim](interface {found.interface})[/]"


def _threads(found: Threads) -> str:
    cores = f"{found.physical} cores, " if found.physical is not None else ""
    quota = f", the container grants {found.quota:g}" if found.quota else ""
    return f"[bold]{found.torch}[/]  [dim]({cores}{found.logical} logical processors{quota})[/]"


def _memory(found: Memory) -> str:
    pages = f"huge pages: {found.huge_pages}" if found.huge_pages else "huge pages: not known"
    if found.total is None:
        return f"[dim]size not known; {pages}[/]"
    return f"{bytes_text(found.total)}, {bytes_text(found.available)} free  [dim]({pages})[/]"


def _bandwidth(gbs: dict[str, float], method: str) -> str:
    parts = (
        f"[bold]{number(value)} GB/s[/] on {count} thread{'' if count == '1' else 's'}" for count, value in gbs.items()
    )
    return f"{', '.join(parts)}  [dim](reading, by {escaped(method)})[/]"


def _gpu_kernels(found: Gpus) -> str:
    """What runs on the GPUs; those that are alike share a line."""
    from llmquant.kernels.gpu.runtime import VARIABLE as GPU_VARIABLE

    override = f"{GPU_VARIABLE}={escaped(found.override)}" if found.override else f"{GPU_VARIABLE} is not set"
    if found.problem:
        return "[red]not usable, see below[/]"
    lines = dict.fromkeys(
        f"[yellow]off[/], {escaped(gpu.off)}" if gpu.off else f"[bold]Triton[/] for {gpu.arch}, {_TABLES[gpu.table]}"
        for gpu in found.devices
    )
    return f"{'; '.join(lines) or 'none'}  [dim]({override})[/]"


def _speeds(found: Diagnosis) -> Table:
    """A row per model size, a column per format."""
    from llmquant.cli.tables import plain_table

    formats = dict.fromkeys(row.format for row in found.expected)
    table = plain_table("parameters", *(f">{name}" for name in formats))
    for size in dict.fromkeys(row.parameters for row in found.expected):
        rows = [row for row in found.expected if row.parameters == size]
        cells = [
            f"[dim]needs {bytes_text(row.bytes)}[/]" if row.fits is False
            else f"[bold]{number(row.tokens_per_second)}[/]"
            for row in rows
        ]  # fmt: skip
        table.add_row(f"{size / 1e9:g}B", *cells)
    return table
