"""The nearest right word, for error messages."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint such as "; did you mean 'scheme'?", or nothing where no known word is near."""
    near = difflib.get_close_matches(word[:200], list(dict.fromkeys(known)), n=3, cutoff=0.6)
    if not near:
        return ""
    return f"; did you mean {' or '.join(repr(name) for name in near)}?"


def listed(words: Iterable[str]) -> str:
    """The words in one line, separated by commas."""
    return ", ".join(words)


def shortened(words: Sequence[str], count: int = 6, width: int = 80) -> str:
    """The first words in one line, each cut to `width`, and how many more there are."""
    first = listed(word if len(word) <= width else f"{word[: width - 3]}..." for word in words[:count])
    return first if len(words) <= count else f"{first} and {len(words) - count} more"


def shown(value: object) -> str:
    """A value as Python writes it, cut to what one can read."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a number of more than 4,300 digits
        return f"<{type(value).__name__} that is too long to show>"
