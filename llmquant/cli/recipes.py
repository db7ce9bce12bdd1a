"""`llmquant recipes`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from llmquant.cli import arguments


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser("recipes", help="the recipes that ship with llmquant")
    parser.add_argument("name", nargs="?", help="print this one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """List them, or print one."""
    from llmquant.cli.tables import plain_table
    from llmquant.recipe.presets import preset_text, presets
    from llmquant.words import escaped

    if args.name:
        sys.stdout.write(preset_text(args.name))
        return 0
    table = plain_table("recipe", "what it does", fold="what it does")
    for name, description in presets().items():
        table.add_row(f"[bold]{escaped(name)}[/]", escaped(description))
    console.print(table)
    return 0
