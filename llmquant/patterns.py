"""Regular expressions from recipes and from other people's checkpoints, matched with a limit.

Python's `re` backtracks without a bound: `(.*)*!` keeps it busy for ever on the name of a module, and nothing can stop
it. So `re` only judges what is an expression, and the `regex` package, which counts the time of a match, runs it. The
two differ in few places (sets within sets, fuzzy matching in braces); what they would read differently is refused.
"""

from __future__ import annotations

import re
import time
import warnings
from functools import lru_cache
from typing import Any

import regex

from llmquant.errors import PatternError

MAX_LENGTH = 4096
# Of CPU time. An honest expression needs microseconds; those that need more than SLOW share TOTAL_SECONDS.
SECONDS, SLOW, TOTAL_SECONDS = 1.0, 1e-3, 5.0
# `regex` reads {e<2} as "with fewer than two errors", `re` as these five letters.
_ODD_BRACE = re.compile(r"(?<!\\)\{(?!\d+(?:,\d*)?\}|,\d+\})")


class Expression:
    """A regular expression that never takes longer than `SECONDS` for one name."""

    def __init__(self, text: str) -> None:
        """Compile an expression.

        Raises:
            PatternError: if it is none, or longer than `MAX_LENGTH`.
        """
        self.text = text
        self._spent = 0.0
        if len(text) > MAX_LENGTH:
            raise PatternError(f"the regular expression has {len(text)} characters, at most {MAX_LENGTH} are read")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # sets within sets
                re.compile(text)
                self._compiled: Any = regex.compile(text, regex.VERSION0, cache_pattern=False)
        except (re.error, regex.error, OverflowError, RecursionError, Warning) as error:
            raise PatternError(f"bad regular expression {_short(text)}: {error}") from error
        if _ODD_BRACE.search(text):
            raise PatternError(
                f"bad regular expression {_short(text)}: a brace that is no count such as {{2}} or {{1,3}}; write \\{{"
            )

    def match(self, name: str) -> bool:
        """Whether it matches at the start of `name`, as `re.match`.

        Raises:
            PatternError: if it takes too long.
        """
        return self._run(self._compiled.match, name)

    def fullmatch(self, name: str) -> bool:
        """Whether it matches the whole of `name`, as `re.fullmatch`.

        Raises:
            PatternError: if it takes too long.
        """
        return self._run(self._compiled.fullmatch, name)

    def _run(self, function: Any, name: str) -> bool:
        began = time.thread_time()
        try:
            found = function(name, timeout=SECONDS) is not None
        except (TimeoutError, MemoryError, RecursionError) as error:
            raise self._too_slow(name) from error
        took = time.thread_time() - began
        if took > SLOW:
            self._spent += took
            if self._spent > TOTAL_SECONDS:
                raise self._too_slow(name)
        return found

    def _too_slow(self, name: str) -> PatternError:
        return PatternError(
            f"the regular expression {_short(self.text)} takes too long to match {_short(name)}; one repeat inside "
            "another, as in (.*)*, is the usual reason: write it with one"
        )


@lru_cache(maxsize=4096)
def compiled(text: str) -> Expression:
    """The expression of this text, compiled once.

    Raises:
        PatternError: if it is none, or too long.
    """
    return Expression(text)


def target_matches(target: str, name: str) -> bool:
    """Whether an entry of `targets` or `ignore` of a compressed-tensors config names a module.

    An entry is a name, or "re:" and an expression that matches at the start of names.

    Raises:
        PatternError: if it is no expression, or takes too long.
    """
    return compiled(target[3:]).match(name) if target.startswith("re:") else target == name


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
