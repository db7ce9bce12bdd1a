"""What several verbs share: arguments, and checks that come before any work."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.errors import OutputError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def model_and_recipe(parser: argparse.ArgumentParser) -> None:
    """MODEL and --recipe."""
    parser.add_argument("model", metavar="MODEL", help="model folder, config.json (plan only) or hub id")
    parser.add_argument("-r", "--recipe", required=True, help="preset name or YAML file")


def remote_code(parser: argparse.ArgumentParser) -> None:
    """--trust-remote-code."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with the checkpoint (never without this)",
    )


def words(text: str) -> list[str]:
    """The words of "A,B"."""
    return [word.strip() for word in text.split(",") if word.strip()]


def check_targets(*files: Path | None) -> None:
    """Refuse before any work what could not be written after it.

    Raises:
        OutputError: names the file and the reason.
    """
    for file in files:
        if file is not None and (reason := _obstacle(file.absolute())):
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
