"""`llmquant debug`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.cli import arguments
from llmquant.cli.inspect import print_findings
from llmquant.words import escaped, number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from llmquant.debugging.layers import Agreement, Comparison
    from llmquant.debugging.report import DebugReport

_LAYERS = 8  # lines


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser(
        "debug", help="which modules of a quantized model cost most, why, and the recipe edit that helps"
    )
    parser.add_argument("model", metavar="OUT", help="the quantized folder, or a hub id")
    parser.add_argument("--baseline", required=True, metavar="MODEL", help="the model it was made from")
    parser.add_argument("--text", help="a .txt, .jsonl or .json file, or hub:NAME (a built-in one)")
    parser.add_argument("--length", type=arguments.count, help="tokens in a window (512, or the model's context)")
    parser.add_argument("--max-windows", type=arguments.count, default=8, help="windows of the text (8)")
    parser.add_argument(
        "--units", type=arguments.count, default=6, metavar="N",
        help="modules (q/k/v and gate/up as one) that are measured on all windows, besides those with a fault (6)",
    )  # fmt: skip
    parser.add_argument(
        "--bits", type=arguments.positive, metavar="B", help="bits per weight that the recipe edit may add (one edit)"
    )
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="write the edited recipe")
    arguments.json_target(parser, "all numbers")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a self-contained HTML page")
    arguments.device(parser)
    arguments.remote_code(parser)
    arguments.quiet(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure, write, show."""
    arguments.check_targets(args.json, args.recipe, args.report)
    from llmquant.cli.display import RunDisplay
    from llmquant.debugging.debug import debug
    from llmquant.debugging.page import render_page

    with RunDisplay(console, quiet=args.quiet) as display:
        report = debug(
            args.model, args.baseline, text=args.text, length=args.length, max_windows=args.max_windows,
            units=args.units, bits=args.bits, device=args.device, trust_remote_code=args.trust_remote_code,
            progress=display,
        )  # fmt: skip
    arguments.write_json(args.json, report.to_json())
    if args.recipe and report.edit:
        args.recipe.write_text(report.edit.recipe, encoding="utf-8")
    if args.report:
        args.report.write_text(render_page(report), encoding="utf-8")
    print_report(console, report)
    wrote = [str(file) for file in (args.recipe if report.edit else None, args.report) if file]
    if wrote:
        console.print(f"wrote {escaped(', '.join(wrote))}", highlight=False, soft_wrap=True)
    if args.recipe and not report.edit:
        console.print(f"{escaped(args.recipe)} was not written, as there is no edit", highlight=False, soft_wrap=True)
    return 0


def print_report(console: Console, report: DebugReport) -> None:
    """Findings, tables, and at the end what to paste."""
    print_findings(console, report.findings)
    console.print("[bold]what each costs[/]", _costs(report), sep="\n")
    console.print(
        f"[dim]KL of the whole model {number(report.budget.kl.value)}; {escaped(report.budget.note)}. alone: KL of the "
        "baseline with only this quantized; gain: by how much the quantized model's KL falls with this at 16 bits; "
        "+bits: per weight[/]\n",
        highlight=False,
    )
    console.print("[bold]largest errors[/] of outputs, in dB of signal to noise", _layers(report.comparison), sep="\n")
    console.print(
        "[dim]own: given the baseline's inputs; behind: with all quantized modules before it; kurtosis of its inputs, "
        "3 of a normal distribution, and channels whose inputs stick out[/]\n",
        highlight=False,
    )
    console.print(f"[dim]{escaped(report.how())}[/]\n", highlight=False)
    console.print(f"[bold]{escaped(report.sentence())}[/]", highlight=False)
    if report.edit:
        instead = f", in place of {escaped('; '.join(report.edit.dropped))}" if report.edit.dropped else ""
        console.print(f"[dim]# behind the last of `rules:` in the recipe{instead}[/]", highlight=False)
        console.print(escaped(report.edit.rules), highlight=False, soft_wrap=True, end="")


def _costs(report: DebugReport) -> Table:
    from llmquant.cli.tables import Name, plain_table

    table = plain_table("unit", "scheme", ">alone", ">gain", ">of it", ">+bits", fold="unit")
    for name, *rest in report.cost_rows():
        table.add_row(Name(name), *rest)
    return table


def _layers(comparison: Comparison) -> Table:
    from llmquant.cli.tables import Name, plain_table

    table = plain_table("module", ">own", ">behind", ">cosine", ">kurtosis", "sticking out", fold="module")
    noisy = sorted(comparison.layers, key=lambda each: float("inf") if each.own.sqnr is None else each.own.sqnr)
    for each in noisy[:_LAYERS]:
        outliers = ", ".join(map(str, each.activations.outliers[:3])) or "–"
        table.add_row(
            Name(each.name), _decibels(each.own), _decibels(each.accumulated), f"{each.own.cosine:.4f}",
            number(each.activations.kurtosis), outliers,
        )  # fmt: skip
    return table


def _decibels(agreement: Agreement | None) -> str:
    if agreement is None:
        return "–"
    return "equal" if agreement.sqnr is None else f"{agreement.sqnr:.1f}"
