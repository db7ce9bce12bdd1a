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
    from llmquant.recipe.presets import file_names, preset_text, presets
    from llmquant.recipe.quality import EXAMPLE, QUALITIES, SCHEMES
    from llmquant.words import escaped

    if args.name:
        text = preset_text(args.name)
        arguments.write_json(args.json, json.dumps(yaml.safe_load(text), indent=2) + "\n")
        console.file.write(text)
        return 0
    arguments.write_json(args.json, json.dumps(presets(), indent=2) + "\n")
    table = plain_table("recipe", "what it does", fold="what it does")
    known = presets()
    for quality in QUALITIES:
        text = known[f"{SCHEMES[0]}-{quality}"].replace(SCHEMES[0], "SCHEME")
        table.add_row(f"[bold]SCHEME-{quality}[/]", escaped(text))
    for name in file_names():
        table.add_row(f"[bold]{escaped(name)}[/]", escaped(known[name]))
    console.print(table)
    console.print(
        f"SCHEME is {', '.join(SCHEMES)} or any other scheme of weights, as in {EXAMPLE}; "
        "a scheme alone is a recipe too",
        soft_wrap=not console.is_terminal,
    )
    return 0
