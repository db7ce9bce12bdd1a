"""`llmquant inspect`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llmquant.cli import arguments
from llmquant.words import bytes_text, escaped, number, percent, shortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from llmquant.debugging.findings import Finding
    from llmquant.debugging.inspect import Health
    from llmquant.debugging.weight_health import WeightHealth

_COLORS = {"damaged": "red", "fault": "red", "warning": "yellow", "note": "dim"}


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser(
        "inspect", help="health of the scales and codes of a quantized folder",
        epilog="exit status 1 if the folder is damaged: scales or weights that are no numbers",
    )  # fmt: skip
    parser.add_argument("folder", metavar="OUT", help="a quantized folder, or a hub id")
    parser.add_argument("--all", action="store_true", help="a line for every weight, not one for each kind")
    arguments.json_target(parser, "all numbers")
    arguments.quiet(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Look, write, show."""
    arguments.check_targets(args.json)
    from llmquant.cli.display import RunDisplay
    from llmquant.debugging.inspect import inspect

    with RunDisplay(console, quiet=args.quiet) as display:
        health = inspect(args.folder, progress=display)
    arguments.write_json(args.json, health.to_json())
    print_health(console, health, every=args.all)
    return 1 if health.damaged else 0


def print_health(console: Console, health: Health, *, every: bool) -> None:
    """Findings first, then a table."""
    print_findings(console, health.findings)
    console.print(_table(health.weights, every=every))
    console.print(
        f"[dim]{len(health.weights)} quantized weights, {bytes_text(health.bytes_quantized)}; {health.kept} tensors "
        f"kept, {bytes_text(health.bytes_kept)}. scales: smallest to largest; at ends: share of codes at the smallest "
        "or largest; bits: what a code tells, by the entropy of its histogram. Where a line stands for several weights "
        "it has the worst of them.[/]",
        highlight=False,
    )


def print_findings(console: Console, findings: Iterable[Finding]) -> None:
    """What was found, with what to do; findings of one kind that say the same are one."""
    together: dict[tuple[str, str, str], list[str]] = {}
    for each in findings:
        together.setdefault((each.severity, each.what, each.advice), []).extend(each.where)
    for (severity, what, advice), where in together.items():
        places = escaped(shortened(where, count=3))
        console.print(f"[bold {_COLORS[severity]}]{severity}:[/] {places}: {escaped(what)}", highlight=False)
        console.print(f"  [bold]do:[/] {escaped(advice)}", highlight=False)
    console.print("" if together else "[green]nothing stands out[/]\n", end="")


def _table(weights: Sequence[WeightHealth], *, every: bool) -> Table:
    from llmquant.cli.tables import Name, plain_table
    from llmquant.debugging.families import collective_name, kind_of

    table = plain_table("weight", "scheme", ">scales", ">at ends", ">bits", ">size", fold="weight")
    groups: dict[tuple[str, str], list[WeightHealth]] = {}
    for each in weights:
        key = each.name if every else kind_of(each.name)
        groups.setdefault((key, each.scheme), []).append(each)
    for (_, scheme), members in groups.items():
        table.add_row(
            Name(collective_name([each.name for each in members])),
            scheme,
            _range(members),
            percent(max(each.codes.at_ends for each in members)),
            number(min(each.codes.entropy for each in members)),
            bytes_text(sum(each.bytes for each in members)),
        )
    return table


def _range(members: Sequence[WeightHealth]) -> str:
    smallest = [each.scales.smallest for each in members if each.scales.smallest is not None]
    largest = [each.scales.largest for each in members if each.scales.largest is not None]
    return f"{number(min(smallest), 2)}–{number(max(largest), 2)}" if smallest else "none"
