"""`llmquant plan`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.cli import arguments

if TYPE_CHECKING:
    from rich.console import Console


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser("plan", help="what each tensor would become, before any work")
    arguments.model_and_recipe(parser, "model folder, config.json or hub id")
    parser.add_argument("--full", action="store_true", help="one line for each module, not for each kind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan as JSON")
    arguments.remote_code(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Plan, write, show."""
    arguments.check_targets(args.json)
    from llmquant.api import plan
    from llmquant.cli.plan_view import print_plan

    result = plan(args.model, args.recipe, trust_remote_code=args.trust_remote_code)
    if args.json:
        args.json.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    print_plan(console, result, full=args.full)
    return 0
