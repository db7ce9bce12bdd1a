"""`llmquant eval`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.cli import arguments, task_arguments
from llmquant.limits import limits
from llmquant.words import escaped

if TYPE_CHECKING:
    from rich.console import Console

    from llmquant.eval.result import EvalReport

OVER_BUDGET = 3  # exit status; not 2, which argparse uses for a wrong command line


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser(
        "eval", help="measure quantized models against their baseline",
        epilog=f"exit status {OVER_BUDGET} if a budget of the recipe or of --budget is not met; of several models, "
        "if none that has a budget keeps it",
    )  # fmt: skip
    parser.add_argument(
        "models", nargs="+", metavar="OUT", help="quantized folders or hub ids, compared on the same tokens"
    )
    parser.add_argument(
        "--baseline", metavar="MODEL", help="the model they were made from; without it, perplexity alone"
    )
    parser.add_argument(
        "--protocol", default="tokens", choices=("tokens", "wikitext2", "c4"),
        help="which text in which windows: windows as in papers (2048 tokens, no BOS) or, by default, as below",
    )  # fmt: skip
    parser.add_argument(
        "--text", help="a .txt, .jsonl or .json file, or hub:NAME:CONFIG:SPLIT:COLUMN (the protocol's, or a built-in)"
    )
    parser.add_argument("--length", type=arguments.count, help="tokens in a window (512 or the protocol's)")
    parser.add_argument(
        "--bos", action=argparse.BooleanOptionalAction, help="begin each window with BOS (as the tokenizer does)"
    )
    parser.add_argument("--stride", type=arguments.count, help="tokens between windows (no overlap)")
    parser.add_argument("--max-windows", type=arguments.count, help="use only the first windows")
    parser.add_argument(
        "--dtype", default="auto", help="auto: loss in float32 if it fits, speed as stored; checkpoint; or a dtype"
    )
    task_arguments.add(parser)
    parser.add_argument("--speed", type=arguments.seconds, metavar="S", help="seconds for throughput (20; 0: none)")
    parser.add_argument(
        "--noise-floor", action="store_const", const=True, help="of a loss in 16 bits: how much is rounding"
    )
    parser.add_argument(
        "--accuracy", choices=("exact", "fast"), default="exact", help="CPU kernels' accuracy while losses are measured"
    )
    parser.add_argument("--kernel", choices=("reference",), help="plain torch in place of the fast kernels")
    parser.add_argument("--device", default="auto", help="auto: cuda, xpu or mps where there is one, else cpu")
    parser.add_argument(
        "--metric", type=arguments.setting, action="append", default=[], metavar="NAME[=JSON]",
        help="measure NAME, with a JSON object of its options; NAME=false leaves it out",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=arguments.limit, action="append", default=[], metavar="NAME=VALUE",
        help=f"a limit on {', '.join(limits())}, such as kl=0.03",
    )  # fmt: skip
    arguments.json_target(parser, "all numbers, of several models a list")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a self-contained HTML page")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR",
        help="keep finished parts, a JSON per model and report.html there; the same command goes on after a kill",
    )  # fmt: skip
    arguments.remote_code(parser)
    arguments.quiet(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure, write, show."""
    arguments.check_targets(args.json, args.report)
    from llmquant.api import evaluate
    from llmquant.cli.display import RunDisplay
    from llmquant.eval.report import render_page
    from llmquant.eval.result import to_json

    with RunDisplay(console, quiet=args.quiet) as display:
        reports = evaluate(
            args.models, args.baseline, protocol=args.protocol, text=args.text, length=args.length,
            bos=args.bos, stride=args.stride,
            max_windows=args.max_windows, dtype=args.dtype, speed=args.speed, noise_floor=args.noise_floor,
            accuracy=args.accuracy, kernel=args.kernel, budget=dict(args.budget),
            device=args.device, metrics=task_arguments.asked(args), trust_remote_code=args.trust_remote_code,
            out=args.out, progress=display,
        )  # fmt: skip
    arguments.write_json(args.json, to_json(reports))
    if args.report:
        args.report.write_text(render_page(reports), encoding="utf-8")
    print_reports(console, reports)
    if args.out:
        files = f"{len(reports)} report{'' if len(reports) == 1 else 's'}"
        console.print(f"wrote {escaped(args.out / 'report.html')}, {files}", highlight=False, soft_wrap=True)
    judged = [report for report in reports if report.budget]
    return OVER_BUDGET if judged and not any(report.budget_passed for report in judged) else 0


def print_reports(console: Console, reports: Sequence[EvalReport]) -> None:
    """Evaluations side by side, and a line on each."""
    from llmquant.eval.table import render_table
    from llmquant.eval.verdict import verdict

    console.print(render_table(reports))
    for report in reports:
        console.print(f"[bold]{escaped(report.name)}[/]: {escaped(report.sentence())}", highlight=False)
    if said := verdict(reports):
        console.print(f"\n{escaped(said)}", style="bold", highlight=False)
