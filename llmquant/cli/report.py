"""`llmquant report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.cli import arguments
from llmquant.cli.evaluate import print_reports
from llmquant.words import escaped

if TYPE_CHECKING:
    from rich.console import Console


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser("report", help="compare evaluations that were written as JSON")
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE",
        help="what `llmquant eval --json` wrote, on the same text against the same baseline",
    )  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, metavar="PAGE", help="write a self-contained HTML page")
    arguments.json_target(parser, "all of them as one list")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Read, write, show."""
    arguments.check_targets(args.json, args.out)
    from llmquant.eval.report import render_page
    from llmquant.eval.result import read_reports, to_json
    from llmquant.eval.table import check_comparable

    reports = read_reports(args.files)
    check_comparable(reports)
    arguments.write_json(args.json, to_json(reports))
    if args.out:
        args.out.write_text(render_page(reports), encoding="utf-8")
    print_reports(console, reports)
    if args.out:
        console.print(f"wrote {escaped(args.out)}", highlight=False, soft_wrap=True)
    return 0
