"""`llmquant demo`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.cli import arguments

if TYPE_CHECKING:
    from rich.console import Console


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
    from llmquant.demo import demo

    demo(args.out, args.report, console)
    return 0
