"""`llmquant demo`."""

from __future__ import annotations

import argparse
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.cli import arguments
from llmquant.cli.evaluate import print_reports
from llmquant.words import escaped

if TYPE_CHECKING:
    from rich.console import Console

    from llmquant.eval.result import EvalReport

RECIPES = ("int8", "int4-g32", "int4-g32-balanced", "int4-g128", "int4-g128-balanced")
_WINDOWS, _SPEED_SECONDS = 128, 5.0


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser("demo", help="quantize and evaluate the bundled model, write report.html")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), metavar="DIR",
        help="where the quantized models go; earlier ones there are replaced (demo-output)",
    )  # fmt: skip
    parser.add_argument(
        "--report", type=Path, default=Path("report.html"), metavar="FILE", help="the HTML page (report.html)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """The whole story on the bundled model."""
    arguments.check_targets(args.report)
    demo(args.out, args.report, console)
    return 0


def demo(out: Path, page: Path, console: Console) -> list[EvalReport]:
    """Quantize the bundled model into folders of `out` and evaluate it; errors as of `quantize` and `evaluate`."""
    from llmquant.api import quantize
    from llmquant.cli.display import RunDisplay
    from llmquant.compare import compare
    from llmquant.eval import EvalOptions
    from llmquant.eval.report import render_page

    with as_file(files("llmquant") / "demo_model") as model:
        for recipe in RECIPES:
            console.rule(f"[bold]{recipe}")
            with RunDisplay(console) as display:
                quantize(model, recipe, out / recipe, overwrite=True, progress=display)
        console.rule("[bold]evaluation")
        options = EvalOptions(max_windows=_WINDOWS, metrics={"speed": {"seconds": _SPEED_SECONDS}, "noise_floor": True})
        reports: list[EvalReport] = []
        with RunDisplay(console) as display:
            for _, report in compare([out / recipe for recipe in RECIPES], model, options, display):
                reports.append(report)
                (out / f"{report.name}.json").write_text(report.to_json(), encoding="utf-8")
                page.write_text(render_page(reports), encoding="utf-8")
    print_reports(console, reports)
    console.print(
        f"\nThe report with all numbers: [bold]{escaped(page)}[/]; the quantized models: [bold]{escaped(out)}/[/]",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return reports
