"""`llmquant verify`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from llmquant.cli import arguments

if TYPE_CHECKING:
    from rich.console import Console


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser("verify", help="whether a quantized folder still holds what was written")
    parser.add_argument("folder", metavar="DIR", help="a quantized folder, or a hub id")
    arguments.json_target(parser, "what was compared")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Read everything, compare, say what was and what could not be."""
    arguments.check_targets(args.json)
    from rich.markup import escape

    from llmquant.engine.output.check_folder import verify_folder

    result = verify_folder(args.folder)
    arguments.write_json(args.json, json.dumps(asdict(result), indent=2) + "\n")
    files = f", and {result.files} files beside them" if result.files else ""
    console.print(escape(f"{args.folder}: {result.tensors} tensors read, {result.digests} as they were written{files}"))
    if result.note:
        console.print(escape(result.note))
    return 0
