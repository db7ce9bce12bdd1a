"""The command line: thin, one file for each verb.

A verb's file has `add`, which describes its arguments, and `run`. Nothing here imports torch before a verb needs it, so
that `--help`, `--version` and `recipes` answer at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from llmquant.cli import bench, demo, doctor, evaluate, plan, quantize, recipes
from llmquant.errors import LlmquantError

OVER_BUDGET = evaluate.OVER_BUDGET
_INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended
_WIDTH_OF_FILES = 120  # rich would take 80 columns where there is no terminal
_EPILOG = """\
exit status:
  0    done
  1    an error, named in one message; for doctor: something is broken
  2    the command line itself is wrong
  3    eval: measured, but over the budget
  130  interrupted by Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (see `llmquant --help`)."""
    args = _parser().parse_args(arguments)
    from rich.console import Console
    from rich.markup import escape

    try:
        return args.run(args, Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES))
    except (LlmquantError, OSError) as error:
        message = f"[bold red]error:[/] {escape(str(error))}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print(escape(f"interrupted{args.if_interrupted}"), highlight=False, soft_wrap=True)
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmquant", description="Weight quantization for Hugging Face causal LMs.", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"llmquant {version('llmquant')}")
    parser.set_defaults(if_interrupted="")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for verb in (plan, quantize, evaluate, bench, demo, doctor, recipes):
        verb.add(commands)
    return parser
