"""`llmquant recipes`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from llmquant.cli import arguments

if TYPE_CHECKING:
    from rich.console import Console


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser("recipes", help="the recipes that ship with llmquant")
    parser.add_argument("name", nargs="?", help="print this one")
    arguments.json_target(parser, "the names with what they do, or the one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """List them, or print one."""
    arguments.check_targets(args.json)
    import yaml

    from llmquant.cli.tables import plain_table
    from llmquant.recipe.presets import preset_text, presets
    from llmquant.words import escaped

    if args.name:
        text = preset_text(args.name)
        arguments.write_json(args.json, json.dumps(yaml.safe_load(text), indent=2) + "\n")
        console.file.write(text)
        return 0
    arguments.write_json(args.json, json.dumps(presets(), indent=2) + "\n")
    table = plain_table("recipe", "what it does", fold="what it does")
    for name, description in presets().items():
        table.add_row(f"[bold]{escaped(name)}[/]", escaped(description))
    console.print(table)
    return 0
