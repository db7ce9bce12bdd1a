"""Shares of right answers of two models on the same documents: intervals, and whether what changed is chance.

The harness's standard errors are not used: they take the two models for independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

from llmquant.eval.statistics import LEVEL, Estimate, score_interval

_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def share(right: int, documents: int) -> Estimate:
    """Share of documents with Wilson's score interval (Wilson 1927, JASA 22)."""
    value = right / documents
    return Estimate(value, *score_interval(value, documents, _Z), math.sqrt(value * (1 - value) / documents))


def difference(lost: int, won: int, documents: int) -> Estimate:
    """(won - lost) / documents, the change of the share of right answers, with its score interval for paired samples.

    Tango 1998, Statistics in Medicine 17, 891-908: all differences that the score test does not reject.
    """
    value, n = (won - lost) / documents, documents

    def steepness(delta: float) -> float:
        """The score statistic for the true difference `delta`; it falls as delta grows."""
        # The most likely share of documents that are lost, if the difference were delta.
        linear = -lost - won + (2 * n - won + lost) * delta
        root = math.sqrt(max(0.0, linear**2 + 8 * n * lost * delta * (1 - delta)))
        variance = n * (2 * (root - linear) / (4 * n) + delta * (1 - delta))
        distance = won - lost - n * delta
        return (
            distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0
        )

    low = _crossing(steepness, _Z, -1.0, value)
    high = _crossing(steepness, -_Z, value, 1.0)
    return Estimate(value, low, high, math.sqrt(max(0.0, (lost + won) / n - value**2) / n))


def _crossing(falling: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Where a falling function reaches a level, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > level else (low, middle)
    return (low + high) / 2


def exact_p(lost: int, won: int) -> float:
    """McNemar's test, exact and two-sided: how likely so uneven a split of what changed is, were both ways equally so.

    McNemar 1947, Psychometrika 12; the binomial distribution in place of chi-squared.
    """
    changed, fewer = lost + won, min(lost, won)
    term = total = 1
    for k in range(1, fewer + 1):
        term = term * (changed - k + 1) // k
        total += term
    return min(1.0, 2 * total / 2**changed)


def mean(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Weighted mean of independent estimates, its interval from theirs.

    Zou and Donner 2008, Statistics in Medicine 27, 1693-1702: each limit's distances from the estimates, in squares.
    """
    parts = [(each, weight / sum(weights)) for each, weight in zip(estimates, weights, strict=True)]
    value = sum(weight * each.value for each, weight in parts)

    def distance(of: Callable[[Estimate], float]) -> float:
        return math.sqrt(sum((weight * of(each)) ** 2 for each, weight in parts))

    below = distance(lambda each: each.value - (each.value if each.low is None else each.low))
    above = distance(lambda each: (each.value if each.high is None else each.high) - each.value)
    return Estimate(value, value - below, value + above, distance(lambda each: each.standard_error or 0.0))
