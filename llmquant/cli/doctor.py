"""`llmquant doctor`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.cli import arguments

if TYPE_CHECKING:
    from rich.console import Console


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser("doctor", help="what this machine has, how fast it can be, and what to improve")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON, to FILE or instead of the text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Look, measure, write, show."""
    to_file = Path(args.json) if args.json not in (None, "-") else None
    arguments.check_targets(to_file)
    from llmquant.cli.doctor_view import print_diagnosis
    from llmquant.doctor import diagnose

    found = diagnose()
    text = json.dumps(found.to_dict(), indent=2) + "\n"
    if to_file:
        to_file.write_text(text, encoding="utf-8")
    if args.json == "-":
        sys.stdout.write(text)
    else:
        print_diagnosis(console, found)
    return 1 if found.broken else 0
