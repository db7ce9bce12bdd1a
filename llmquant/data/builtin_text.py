"""Texts that need no network: a mixture that is shipped, and what every CPython carries.

`builtin:mixed` is prose, other languages, code, mathematics, tables and dialogue for calibration; SOURCES.md beside it
says where it comes from. `builtin:python` is the source files and documentation topics of the user's own Python. Whole
modules (and whole topics) are dealt to one of three splits by a hash of their name, so the splits are disjoint and the
same module lands in the same split under every Python version.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

from llmquant.errors import DataError

Split = Literal["train", "calibration", "eval"]

# Tests and vendored wheels are not installed everywhere; code pages and generated tables are not text.
_SKIPPED_FOLDERS = {
    "__pycache__", "_bundled", "config", "dist-packages", "encodings", "ensurepip", "idle_test", "lib2to3",
    "pydoc_data", "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
_MIN_CHARS = 400


def mixed_documents(split: str) -> list[str]:
    """The documents of the mixture, in an order of which each part holds every kind.

    Raises:
        DataError: for another split than "calibration", the only one: nothing of it is for evaluation.
    """
    if split != "calibration":
        raise DataError(f"builtin:mixed has no {split!r} split: it is for calibration; evaluate on other text")
    packed = (files("llmquant") / "calibration_text" / "mixed.jsonl.gz").read_bytes()
    return [json.loads(line)["text"] for line in gzip.decompress(packed).decode().splitlines()]


def split_of(name: str) -> Split:
    """The split that a module or topic belongs to: 1/16 evaluation, 1/16 calibration, the rest training."""
    bucket = hashlib.sha256(name.encode()).digest()[0] % 16
    return "eval" if bucket == 0 else "calibration" if bucket == 1 else "train"


def python_documents(split: Split) -> list[str]:
    """The documents of one split, ordered by name.

    Raises:
        DataError: if this Python was installed without its library sources.
    """
    if split not in get_args(Split):
        raise DataError(f"unknown split {split!r} of the built-in text; use one of {', '.join(get_args(Split))}")
    first = {}  # some topics are the same text under two names
    for name, text in sorted(_named_texts()):
        first.setdefault(text, name)
    documents = [text for text, name in first.items() if split_of(name) == split]
    if not documents:
        raise DataError(
            f"no {split} text found: this Python has no library sources in {sysconfig.get_path('stdlib')}; "
            "give a text file instead of the built-in data set"
        )
    return documents


def _named_texts() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if any(part in _SKIPPED_FOLDERS or part.startswith("config-") for part in parts):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(text) >= _MIN_CHARS:
            yield "/".join(parts), text
    yield from _topics()


def _topics() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions split it off; the modules alone are enough
        return
    for name, text in topics.items():
        if len(text) >= _MIN_CHARS:
            yield f"topic/{name}", text
