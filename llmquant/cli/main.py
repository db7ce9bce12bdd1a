"""The command line: thin, one file for each verb.

A verb's file has `add`, which describes its arguments, and `run`. Nothing here imports torch before a verb needs it, so
that `--help`, `--version` and `recipes` answer at once.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from importlib.metadata import version

from llmquant.cli import (
    bench,
    completion,
    debug,
    demo,
    doctor,
    evaluate,
    inspect,
    plan,
    push,
    qat,
    quantize,
    recipes,
    report,
    verify,
)
from llmquant.cli.arguments import STDOUT
from llmquant.cli.examples import add_examples
from llmquant.errors import LlmquantError

OVER_BUDGET = evaluate.OVER_BUDGET
_EPILOG = """\
exit status:
  0    done
  1    an error, named in one message; for doctor and inspect: something is broken
  2    the command line itself is wrong
  3    eval: measured, but over the budget (of several models: all that have one)
  130  interrupted by Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (see `llmquant --help`)."""
    args = _parser().parse_args(arguments)
    from rich.console import Console

    from llmquant.words import escaped

    _never_fail_to_print()
    # Without emoji: "a:key:b" in a name is not a picture. Rich would take 80 columns where there is no terminal.
    aside = args.json == STDOUT
    width = None if (sys.stderr if aside else sys.stdout).isatty() else 120
    console, errors = Console(stderr=aside, width=width, emoji=False), Console(stderr=True, emoji=False)
    try:
        return args.run(args, console)
    except (LlmquantError, OSError) as error:
        errors.print(f"[bold red]error:[/] {escaped(error)}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        errors.print(f"interrupted{args.if_interrupted}", markup=False, highlight=False, soft_wrap=True)
        return 130  # as a shell reports a program that Ctrl-C ended


def _never_fail_to_print() -> None:
    """A character that the terminal's encoding lacks becomes "?"; after hours of work it must not be an exception."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmquant", description="Weight quantization for Hugging Face causal LMs.", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"llmquant {version('llmquant')}")
    parser.set_defaults(if_interrupted="", json=None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for verb in (
        plan,
        quantize,
        qat,
        verify,
        inspect,
        evaluate,
        debug,
        report,
        push,
        bench,
        demo,
        doctor,
        recipes,
        completion,
    ):
        verb.add(commands)
    add_examples(commands.choices)
    return parser
