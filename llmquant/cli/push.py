"""`llmquant push`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.cli import arguments
from llmquant.words import bytes_text, escaped

if TYPE_CHECKING:
    from rich.console import Console

    from llmquant.hub.push import Pushed


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser("push", help="publish a result on a hub, with a card of measured numbers")
    parser.add_argument("folder", metavar="OUT", help="the quantized folder")
    parser.add_argument("repo", metavar="USER/NAME", help="the repository; it is made if it is not there")
    parser.add_argument(
        "--report", type=Path, action="append", default=[], metavar="FILE",
        help="what `llmquant eval --json FILE` wrote of this folder, alone or beside others; several for several texts",
    )  # fmt: skip
    parser.add_argument("--base-model", metavar="ORG/NAME", help="hub id of the model it was made from")
    parser.add_argument("--private", action="store_const", const=True, help="make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="a branch that exists (main)")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--include", action="append", default=[], metavar="PATTERN", help="further files that shall go")
    parser.add_argument("--overwrite", action="store_true", help="into a repository that holds something else")
    parser.add_argument("--dry-run", action="store_true", help="show the card and the files, change nothing")
    arguments.json_target(parser, "the address, the files, the card and the notes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Verify, write the card, upload; or show what would be."""
    arguments.check_targets(args.json)
    from llmquant.eval.result import read_reports
    from llmquant.hub.push import push_to_hub

    reports = read_reports(args.report)
    result = push_to_hub(
        args.folder, args.repo, reports=reports, base_model=args.base_model, private=args.private,
        revision=args.revision, message=args.message, include=args.include, overwrite=args.overwrite,
        dry_run=args.dry_run,
    )  # fmt: skip
    arguments.write_json(args.json, json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n")
    print_pushed(console, result, Path(args.folder).expanduser())
    return 0


def print_pushed(console: Console, result: Pushed, folder: Path) -> None:
    """Where it is, and what the user should know; of a dry run, what would be uploaded."""
    dry = not result.url
    if dry:
        console.print(result.card, markup=False, highlight=False, soft_wrap=True)
        for name in (*result.upload.weights, *result.upload.others):
            size = bytes_text((folder / name).stat().st_size)
            console.print(f"  {size:>9}  {escaped(name)}", highlight=False)
    for note in result.notes:
        console.print(f"[yellow]note[/]  {escaped(note)}", highlight=False)
    for name in result.removed:
        word = "would remove" if dry else "removed"
        console.print(f"{word} {escaped(name)}, which is of older weights", highlight=False)
    console.print("nothing was uploaded" if dry else escaped(result.url), highlight=False, soft_wrap=True)
