"""`llmquant bench`: speed and memory of a model in several formats, by batch and context."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmquant.cli import arguments
from llmquant.words import escaped, kernels_text, number

if TYPE_CHECKING:
    from rich.console import Console

    from llmquant.bench import BenchReport
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
    parser.add_argument("--batch", type=_counts, default=[1], metavar="N,M", help="sequences at once: 1,4,16 (1)")
    parser.add_argument(
        "--context", type=_counts, default=[128], metavar="N,M", help="tokens of the prompt, such as 512,2048 (128)"
    )
    parser.add_argument("--new", type=arguments.count, default=32, metavar="N", help="tokens decoded one by one (32)")
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
    from llmquant.eval.speed.throughput import ThroughputOptions

    options = ThroughputOptions(batches=args.batch, contexts=args.context, decode_tokens=args.new, seconds=args.seconds)
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


def _counts(text: str) -> list[int]:
    return [arguments.count(word) for word in arguments.words(text)]


def print_bench(console: Console, report: BenchReport) -> None:
    """Every row in every cell, then what ran it."""
    from llmquant.eval.speed.table import labels, speed_table

    console.print(
        f"[bold]{escaped(report.model)}[/], {number(report.parameters / 1e6)} M weights, on {_place(report)}",
        highlight=False,
    )
    console.print(speed_table(report))
    for row, name in zip(report.rows, labels(report.rows), strict=True):
        if row.dtype:
            kernels = escaped(kernels_text(row.kernels)) or "torch"
            console.print(f"[dim]{escaped(name)}: computes in {escaped(row.dtype)}; {kernels}[/]", highlight=False)


def _place(report: BenchReport) -> str:
    cpu, threads, device = (report.machine[name] for name in ("cpu", "threads", "device"))
    return f"{escaped(cpu)}, {threads} thread{'' if threads == 1 else 's'}" if device == "cpu" else escaped(str(device))
