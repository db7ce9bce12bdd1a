"""What several verbs share: arguments, and checks that come before any work."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant.errors import OutputError, RecipeError
from llmquant.recipe.quality import DEFAULT_QUALITY, EXAMPLE, OF_BITS, QUALITIES, recipe_name

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def model_and_recipe(parser: argparse.ArgumentParser, model: str) -> None:
    """MODEL, with what it may be, and --recipe, or --bits and --quality in its place; see `chosen_recipe`."""
    parser.add_argument("model", metavar="MODEL", help=model)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("-r", "--recipe", help="preset name or YAML file")
    which.add_argument("--bits", type=int, choices=tuple(OF_BITS), help="take the recipe for so many bits")
    parser.add_argument("--quality", choices=QUALITIES, help=f"with --bits: how much work ({DEFAULT_QUALITY})")


def chosen_recipe(args: argparse.Namespace) -> str:
    """The recipe that `model_and_recipe` was given.

    Raises:
        RecipeError: if a quality is named beside a recipe, which has its own.
    """
    if args.bits is not None:
        return recipe_name(args.bits, args.quality or DEFAULT_QUALITY)
    if args.quality is not None:
        raise RecipeError(
            f"--quality goes with --bits, not with a recipe; for a scheme it is its name's end: {EXAMPLE}"
        )
    return args.recipe


def remote_code(parser: argparse.ArgumentParser) -> None:
    """--trust-remote-code."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with the checkpoint (never without this)",
    )


def device(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, xpu, mps (auto: a GPU if there is one)"
    )


def quiet(parser: argparse.ArgumentParser) -> None:
    """--quiet."""
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress, only notes and the result")


STDOUT = Path("-")


def json_target(parser: argparse.ArgumentParser, what: str) -> None:
    """--json; `main` sends whatever else a verb prints to standard error where the target is standard output."""
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"write {what} as JSON; - is standard output")


def write_json(target: Path | None, text: str) -> None:
    """Write what --json asked for, if it did; always in UTF-8."""
    if target == STDOUT:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        sys.stdout.write(text)
        sys.stdout.flush()
    elif target is not None:
        target.write_text(text, encoding="utf-8")


def words(text: str) -> list[str]:
    """The words of "A,B"."""
    return [word.strip() for word in text.split(",") if word.strip()]


def count(text: str) -> int:
    """A whole number from 1 on."""
    return int(_number(text, int, 1, "a whole number from 1 on"))


def positive(text: str) -> float:
    """A number above 0."""
    return _number(text, float, 5e-324, "a number above 0")


def seconds(text: str) -> float:
    """A time from 0 on."""
    return _number(text, float, 0, "a number of seconds from 0 on")


def limit(text: str) -> tuple[str, float]:
    """ "NAME=NUMBER" of a budget."""
    from llmquant.errors import RecipeError
    from llmquant.limits import check_limits

    name, _, value = text.partition("=")
    try:
        found = {name: float(value)}
        check_limits(found)
    except RecipeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted NAME=NUMBER, such as kl=0.03") from error
    return name, found[name]


def setting(text: str) -> tuple[str, Any]:
    """ "NAME" or "NAME=JSON" of a metric: its options, or whether it is measured."""
    name, sign, value = text.partition("=")
    try:
        found = json.loads(value) if sign else True
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, (bool, dict)):
        raise argparse.ArgumentTypeError(f'{text!r}: wanted NAME, NAME=false or NAME={{"option": value}}')
    return name, found


def _number(text: str, kind: type[int] | type[float], least: float, wanted: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted {wanted}")
    return value


def check_targets(*files: Path | None) -> None:
    """Refuse before any work what could not be written after it.

    Raises:
        OutputError: names the file and the reason.
    """
    for file in files:
        if file not in (None, STDOUT) and (reason := _obstacle(file.absolute())):
            raise OutputError(f"{file} cannot be written: {reason}")


def _obstacle(file: Path) -> str:
    try:
        if file.is_dir():
            return "it is a folder; give the name of a file"
        if not file.parent.is_dir():
            return f"there is no folder {file.parent}"
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        return getattr(error, "strerror", None) or str(error)
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        return "no permission"
    return ""
