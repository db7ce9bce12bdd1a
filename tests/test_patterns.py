"""Expressions that would keep `re` busy for ever end in an error; the others match as `re` does."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from types import SimpleNamespace

import pytest

from llmquant import patterns
from llmquant.errors import LlmquantError, PatternError
from llmquant.patterns import Expression, compiled, target_matches

NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.experts.3.down_proj",
    "lm_head",
    "",
    "model{1}",
    "ſK",
    "ß",
]
HOSTILE = [r"(?:\w|\w\w|\.)+[!?]", "(?:(?:.|..)*)*[!?]", "(?>(?:.|..)*[!?])", r"((\w|\.)+\w?)+[!?]", "(.*)*!"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_expression_is_an_answer_or_an_error_in_bounded_time(text: str) -> None:
    began = time.process_time()
    with contextlib.suppress(PatternError):
        assert not Expression(text).fullmatch(NAMES[1] * 3)
    assert time.process_time() - began < 2 * patterns.SECONDS


def test_the_limit_is_met_at_all() -> None:
    with pytest.raises(PatternError, match="takes too long"):
        Expression("(?:(?:.|..)*)*[!?]").match(NAMES[1] * 3)


def clock(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    """Let each match take that many seconds of CPU time."""
    ticks = itertools.count()
    monkeypatch.setattr(patterns, "time", SimpleNamespace(thread_time=lambda: step * next(ticks)))


def test_many_slow_matches_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 1.0)
    expression = Expression("a+b")
    for _ in range(int(patterns.TOTAL_SECONDS)):
        assert expression.match("aaaab")
    with pytest.raises(PatternError, match="takes too long"):
        expression.match("aaaab")


def test_fast_matches_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, patterns.SLOW / 2)
    expression = Expression("a+b")
    assert all(expression.match("aaaab") for _ in range(int(3 * patterns.TOTAL_SECONDS / patterns.SLOW)))


@pytest.mark.parametrize("error", [TimeoutError, MemoryError, RecursionError])
def test_whatever_ends_a_match_is_told(error: type[Exception]) -> None:
    def match(*_: object, **__: object) -> None:
        raise error

    expression = Expression("a+b")
    expression._compiled = SimpleNamespace(match=match)
    with pytest.raises(PatternError, match="takes too long to match 'aaaab'"):
        expression.match("aaaab")


@pytest.mark.parametrize(
    "text",
    [
        ".*", r"model\.layers\.(0|1)\..*", "lm_head", "lm", ".*down_proj$", "^(?!.*lm_head).*", r"(?i).*LM_HEAD",
        r".*\.(?P<n>\d+)\.(?=mlp)", r"[^.]*", r".*layers\.(?:[0-9]|1[0-1])\b.*", r"m.{2}e", r"(m).*\1", r"model\{1}",
        "", r".*(?<=layers\.)11.*", "(?i)sk", r"\w{1,2}", "a{,3}", "a{,}", "a{}", r"[\w-]*", r"\d++", "(?x) lm _ head",
        "(?i)ss",
    ],
)  # fmt: skip
def test_the_answers_are_those_of_re(text: str) -> None:
    try:
        reference = re.compile(text)
        mine = Expression(text)
    except (re.error, PatternError):
        # What the two may read differently, or Python 3.10 does not know.
        assert text in ("a{,}", "a{}") or "++" in text
        return
    for name in NAMES:
        assert mine.match(name) == (reference.match(name) is not None)
        assert mine.fullmatch(name) == (reference.fullmatch(name) is not None)


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "a{99999999999}",
        "(?P<a>",
        "(" * 2000 + ")" * 2000,
        "[[a]",
        "a{e<2}",
        "x" * 5000,
        r"\p{L}",
        "(?Lu)a",
        "|{e}",
    ],
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(PatternError) as caught:
        Expression(text)
    assert isinstance(caught.value, LlmquantError)
    assert len(str(caught.value)) < 400


def test_the_longest_expression_is_read() -> None:
    assert Expression("x" * patterns.MAX_LENGTH).match("x") is False


def test_targets_match_as_compressed_tensors_does() -> None:
    assert target_matches("lm_head", "lm_head")
    assert not target_matches("lm", "lm_head")
    assert target_matches("re:lm", "lm_head")  # re.match: the start is enough
    assert not target_matches("re:head", "lm_head")
    assert compiled("lm") is compiled("lm")
