"""Words for a loss: by size and interval, without praise for noise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest

from llmquant.eval.metrics.perplexity import Section as Perplexity
from llmquant.eval.metrics.perplexity import Verdict, verdict, verdict_text
from llmquant.eval.result import EvalReport
from llmquant.eval.statistics import Estimate, exponential


def change(percent: float, half: float) -> Estimate:
    """A change of perplexity with an interval, both in percent, as a difference of logs."""
    value, low, high = (math.log1p(each / 100) for each in (percent, percent - half, percent + half))
    return Estimate(value, low, high, 0.1)


CASES = [
    (change(-0.1, 0.05), 0.04, None, "no measurable loss"),  # ahead, by an interval that leaves zero out
    (change(-0.1, 0.3), 0.04, None, "no measurable loss"),
    (change(0.5, 0.5), 0.04, None, "no measurable loss"),
    (change(0.6, 0.7), 0.04, None, "unclear"),
    (change(-2.0, 9.0), 0.04, None, "unclear"),
    (change(0.09, 0.01), 0.04, None, "negligible loss"),
    (change(0.11, 0.01), 0.04, None, "small loss"),
    (change(0.8, 0.1), 0.04, None, "small loss"),
    (change(1.1, 0.1), 0.04, None, "loss"),
    (change(9.9, 0.1), 0.04, None, "loss"),
    (change(10.1, 0.1), 0.04, None, "large loss"),
    (change(0.8, 0.1), 0.04, 0.03, "small loss"),
    (change(0.8, 0.1), 0.03, 0.03, "within the noise floor"),
    (Estimate(0.0, 0.0, 0.0), 0.0, None, "identical"),
    (Estimate(0.0), 0.0, None, "identical"),
    (Estimate(0.1), 0.03, None, "too little text"),
    (Estimate(0.1), 0.03, 0.04, "too little text"),
]


@pytest.mark.parametrize(("difference", "kl", "floor", "expected"), CASES)
def test_verdict(difference: Estimate, kl: float, floor: float | None, expected: str) -> None:
    assert verdict(difference, kl, floor) == expected


def test_every_word_is_tested_and_in_the_documentation(repository) -> None:
    words = set(get_args(Verdict))
    assert {expected for *_, expected in CASES} == words
    text = (repository / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert [word for word in words if f"`{word}`" not in text] == []


@pytest.mark.parametrize(
    ("difference", "shown"),
    [
        (change(0.8, 0.1), "small loss +0.80 %"),
        (change(25, 0.1), "large loss +25.0 %"),
        (change(-0.1, 0.05), "no measurable loss"),
        (change(0.1, 0.2), "no measurable loss, at most +0.30 %"),
        (change(-2, 9), "unclear, at most +7.0 %"),
        (Estimate(0.1), "too little text"),
    ],
)
def test_words_come_with_sizes(report: EvalReport, difference: Estimate, shown: str) -> None:
    word = verdict(difference, 0.04, None)
    section = replace(report[Perplexity], verdict=word, ratio=exponential(difference))
    assert verdict_text(section) == shown
