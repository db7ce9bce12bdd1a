"""Numbers, lists and foreign text as people read them in messages and in the terminal."""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence

_PREFIXES = ("B", "kB", "MB", "GB", "TB")
# Everything that moves the cursor, colors, rings or reverses the direction of text; not the line feed of our messages.
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def bytes_text(count: int | None) -> str:
    """Decimal units, such as "8.39 MB"."""
    if count is None:
        return "–"
    value, place = float(count), 0
    while value >= 999.5 and place + 1 < len(_PREFIXES):
        value, place = value / 1000, place + 1
    return f"{value:.3g} {_PREFIXES[place]}" if place else f"{count} B"


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits, without an exponent between 0.0001 and a million."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    if not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    text = f"{value:#.{digits}g}"
    return f"{value:.0f}" if "e" in text or text.endswith(".") else text


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * value:.{digits}f} %"


def dtype_name(dtype: object) -> str:
    """Such as "bfloat16" of a `torch.dtype`."""
    return str(dtype).removeprefix("torch.")


def duration(seconds: float) -> str:
    """Such as "7 s", "2 min 10 s" or "3 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def printable(text: object) -> str:
    """Text from outside (a path, a name in a config, an error of a library) without what a terminal would obey."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), str(text))


def escaped(text: object) -> str:
    """Text from outside for rich's markup: printable, and brackets are only brackets."""
    from rich.markup import escape

    return escape(printable(text))


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


def one_a_line(problems: Sequence[str], count: int = 10) -> str:
    """The first problems, each on a line of its own, and how many more there are."""
    more = [f"and {len(problems) - count} more"] if problems[count:] else []
    return "".join(f"\n  {line}" for line in [*problems[:count], *more])


def shown(value: object) -> str:
    """A value as Python writes it, cut to what one can read."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a number of more than 4,300 digits
        return f"<{type(value).__name__} that is too long to show>"


def kernels_text(kernels: Mapping[str, int]) -> str:
    """Kernels with their number of layers, such as "linear_int4: avx512vnni, exact (28 layers)"."""
    return "; ".join(f"{name} ({count} layer{'' if count == 1 else 's'})" for name, count in kernels.items())
