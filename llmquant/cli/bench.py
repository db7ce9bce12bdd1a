"""`llmquant bench`: a row for each contender."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmquant.cli import arguments
from llmquant.words import bytes_text, escaped, kernels_text, number

if TYPE_CHECKING:
    from rich.console import Console

    from llmquant.eval.bench import BenchReport, BenchRow
    from llmquant.eval.statistics import Spread
    from llmquant.nn.accuracy import Accuracy


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser("bench", help="speed and memory of a model in several formats, side by side")
    parser.add_argument("model", metavar="MODEL", help="a 16- or 32-bit model, quantized in memory, or a quantized one")
    parser.add_argument("--baseline", metavar="MODEL", help="of a quantized model: the one it was made from")
    parser.add_argument("--dtypes", type=arguments.words, metavar="A,B", help="of the dense model (fp32,bf16)")
    parser.add_argument(
        "--schemes", type=arguments.words, metavar="A,B", help="schemes, presets or recipes (int8,int4-g128)"
    )
    parser.add_argument("--accuracy", choices=("exact", "fast", "both"), default="both", help="of the kernels (both)")
    parser.add_argument("--prompt", type=arguments.count, default=128, metavar="N", help="tokens of the prompt (128)")
    parser.add_argument("--new", type=arguments.count, default=32, metavar="N", help="tokens decoded one by one (32)")
    parser.add_argument("--batch", type=arguments.count, default=1, metavar="N", help="sequences at once (1)")
    arguments.device(parser)
    parser.add_argument(
        "--static-cache",
        action="store_true",
        help="also time a cache of fixed size; on CUDA, by CUDA graphs",
    )
    parser.add_argument("--threads", type=arguments.count, metavar="N", help="threads of torch (as they are)")
    parser.add_argument(
        "--seconds", type=arguments.seconds, default=20, metavar="S", help="time for all rounds; 3 at least (20)"
    )
    arguments.json_target(parser, "all numbers")
    parser.add_argument("--tune", action="store_true", help="instead, find and keep the fastest kernels for this GPU")
    arguments.remote_code(parser)
    arguments.quiet(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Time, write, show."""
    arguments.check_targets(args.json)
    if args.tune:
        return _tune(args, console)
    from llmquant.bench import bench_model
    from llmquant.cli.display import RunDisplay
    from llmquant.eval.throughput import ThroughputOptions

    options = ThroughputOptions(
        prompt_tokens=args.prompt, decode_tokens=args.new, batch_size=args.batch, seconds=args.seconds
    )
    with RunDisplay(console, quiet=args.quiet) as display:
        report = bench_model(
            args.model, baseline=args.baseline, dtypes=args.dtypes, schemes=args.schemes, options=options,
            accuracies=_accuracies(args), threads=args.threads, device=args.device, static_cache=args.static_cache,
            trust_remote_code=args.trust_remote_code, progress=display,
        )  # fmt: skip
    arguments.write_json(args.json, report.to_json())
    print_bench(console, report)
    return 0


def _tune(args: argparse.Namespace, console: Console) -> int:
    from llmquant.cli.bench_tune import print_tuned, tune_model
    from llmquant.cli.display import RunDisplay

    with RunDisplay(console, quiet=args.quiet) as display:
        report = tune_model(
            args.model, schemes=args.schemes, accuracies=_accuracies(args), trust_remote_code=args.trust_remote_code,
            progress=display,
        )  # fmt: skip
    arguments.write_json(args.json, report.to_json())
    print_tuned(console, report)
    return 0


def _accuracies(args: argparse.Namespace) -> Sequence[Accuracy]:
    return ("exact", "fast") if args.accuracy == "both" else (args.accuracy,)


def print_bench(console: Console, report: BenchReport) -> None:
    """A row for each contender, then how it was measured."""
    from llmquant.cli.tables import plain_table
    from llmquant.machine import BUSY

    console.print(
        f"[bold]{escaped(report.model)}[/], {number(report.parameters / 1e6)} M weights, on {_place(report)}",
        highlight=False,
    )
    table = plain_table(
        "weights", "computes in", "accuracy", ">memory", ">prefill tok/s", ">decode tok/s", "kernels", fold="kernels"
    )
    for place, row in enumerate(report.rows):
        table.add_row(
            f"[bold]{escaped(row.name)}[/]" + ", static cache" * row.static,
            escaped(row.dtype) or "–",
            row.accuracy or "–",
            bytes_text(row.parameter_bytes),
            _cell(row.prefill, row.prefill_speedup if place else None),
            _cell(row.decode, row.decode_speedup if place else None),
            _kernels(row),
        )
    console.print(table)
    first = report.rows[0]
    rounds = f"{first.decode.runs} round{'' if first.decode.runs == 1 else 's'}"
    compared = f", and the ratio to {escaped(first.name)} round by round" if len(report.rows) > 1 else ""
    console.print(
        f"[dim]batch {report.batch_size}, prompt of {report.prompt_tokens} tokens, then {report.decode_tokens} one by "
        f"one; {rounds}, each with all rows in turn; median, (quartiles){compared}[/]",
        highlight=False,
    )
    if report.others is not None and report.others > BUSY:
        console.print(
            f"[bold yellow]warning:[/] other programs kept {report.others:.0%} of the processors busy; the ratios hold "
            "better than the speeds\n  [bold]do:[/] run it again when the machine is quiet",
            highlight=False,
        )


def _place(report: BenchReport) -> str:
    cpu, threads, device = (report.machine[name] for name in ("cpu", "threads", "device"))
    return f"{escaped(cpu)}, {threads} thread{'' if threads == 1 else 's'}" if device == "cpu" else escaped(str(device))


def _kernels(row: BenchRow) -> str:
    """The accuracy has a column of its own."""
    kernels = {name.removesuffix(f", {row.accuracy}"): count for name, count in row.kernels.items()}
    return escaped(kernels_text(kernels)) or "torch"


def _cell(speed: Spread, against_first: Spread | None) -> str:
    from llmquant.eval.lines import speedup

    text = number(speed.median)
    if speed.q25 is not None:
        text += f" [dim]({number(speed.q25)}–{number(speed.q75)})[/]"
    if against_first is None:
        return text
    ratio, kind = speedup(against_first)
    return f"{text}\n[{'red' if kind == 'slower' else 'dim'}]{ratio}[/]"
