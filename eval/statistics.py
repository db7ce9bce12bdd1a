"""Intervals for numbers measured on text.

Tokens of one window are not independent, so the window is the unit: standard errors are clustered by window, and the
bootstrap resamples windows. A mean over tokens is a ratio of two sums over windows (values, tokens), resampled
together. Below `MIN_WINDOWS` windows there is no interval: none that is worth its name covers the truth there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmquant.errors import DataError

Floats = NDArray[np.float64]
RESAMPLES = 10_000
_LARGEST = 700.0  # of what exp() takes
LEVEL = 0.95
_CHUNK_ELEMENTS = 4_000_000  # resampling weights held at once

MIN_WINDOWS = 8
MIN_RUNS = 3
_STEEPEST = 4.0  # t statistics of resamples are cut at this many Student quantiles: some have no spread at all
_LONG_TAIL = 2.0  # widening of the long tail's side, times skewness / sqrt(windows); chosen by simulation


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; too few windows give none, and `note` says so."""

    value: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of repeated timings; fewer than three give no quartiles."""

    median: float
    q25: float | None
    q75: float | None
    runs: int


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles (linear interpolation) of at least one value; no quartiles below `MIN_RUNS`."""
    numbers = np.asarray(values, dtype=np.float64)
    q25, median, q75 = map(float, np.quantile(numbers, [0.25, 0.5, 0.75]))
    return Spread(median, q25, q75, len(values)) if len(values) >= MIN_RUNS else Spread(median, None, None, len(values))


def cluster_sums(values: NDArray[Any], clusters: NDArray[Any]) -> tuple[Floats, Floats]:
    """Sums and counts of `values` (tokens,) by cluster number (tokens,); clusters without a value are left out."""
    counts = np.bincount(clusters).astype(np.float64)
    sums = np.bincount(clusters, weights=values).astype(np.float64)
    return sums[counts > 0], counts[counts > 0]


def clustered_standard_error(sums: Floats, counts: Floats) -> float | None:
    """Standard error of sum(sums) / sum(counts) with clusters as the unit (linearised ratio estimator).

    Cochran 1977, Sampling Techniques, eq. 6.13 without finite population correction. None for a single cluster.
    """
    n = len(sums)
    if n < 2:
        return None
    residuals = sums - counts * (sums.sum() / counts.sum())
    return float(np.sqrt(n / (n - 1) * np.square(residuals).sum()) / counts.sum())


def cluster_bootstrap(
    sums: Floats, counts: Floats, *, seed: int = 0, resamples: int = RESAMPLES, least: float = -math.inf
) -> Estimate:
    """Mean over tokens with a 95 % interval.

    The bootstrap-t interval (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 12), which follows
    the skewness that Student's ignores. With few windows it is still too short on the side of the long tail, by an
    amount of order skewness / sqrt(windows), as in the first term of the Edgeworth expansion; that side is at least
    Student's and longer by so much. docs/evaluation.md has the coverage.

    `sums` and `counts` (clusters,) are of the values in each; the mean cannot fall below `least`, 0 for a divergence.
    """
    n = len(sums)
    value = float(sums.sum() / counts.sum())
    error = clustered_standard_error(sums, counts)
    if n < MIN_WINDOWS or error is None:
        return Estimate(value, note=too_little_text(n))
    residuals = sums - value * counts
    student = student_quantile((1 + LEVEL) / 2, n - 1)
    ratios = np.clip(_studentized(residuals, counts, seed, resamples), -_STEEPEST * student, _STEEPEST * student)
    short, long = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    skewness = _skewness(residuals) / math.sqrt(n)
    below, above = float(long), -float(short)  # a steep ratio stands for a low truth, and the other way round
    if skewness > 0:
        above = max(above, student) * (1 + _LONG_TAIL * skewness)
    else:
        below = max(below, student) * (1 - _LONG_TAIL * skewness)
    return Estimate(value, max(least, value - below * error), value + above * error, error)


def too_little_text(windows: int) -> str:
    """Why there is no interval."""
    return f"too little text: {windows} window{'' if windows == 1 else 's'}, an interval needs {MIN_WINDOWS}"


def _studentized(residuals: Floats, counts: Floats, seed: int, resamples: int) -> Floats:
    """(resamples,) deviation of each resampled mean over its own standard error."""
    n = len(residuals)
    rng = np.random.default_rng(seed)
    found = np.empty(resamples)
    step = max(1, _CHUNK_ELEMENTS // n)
    for begin in range(0, resamples, step):
        weights = rng.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - begin)).astype(np.float64)
        tokens = weights @ counts
        shift = (weights @ residuals) / tokens
        # Sum of the squared residuals about the resample's own mean, expanded.
        squares = (
            weights @ residuals**2 - 2 * shift * (weights @ (residuals * counts)) + shift**2 * (weights @ counts**2)
        )
        spread_of = np.sqrt(np.maximum(squares, 0.0) * n / (n - 1)) / tokens
        with np.errstate(divide="ignore", invalid="ignore"):
            found[begin : begin + step] = np.nan_to_num(shift / spread_of, nan=0.0)
    return found


def _skewness(residuals: Floats) -> float:
    """Sample skewness (the unbiased ratio of k-statistics); 0 where nothing varies."""
    n, second = len(residuals), float(np.square(residuals).sum())
    if second == 0:
        return 0.0
    deviation = math.sqrt(second / (n - 1))
    return n / ((n - 1) * (n - 2)) * float((residuals**3).sum()) / deviation**3


def cluster_share(hits: NDArray[np.bool_], clusters: NDArray[Any]) -> Estimate:
    """Share of tokens with a 95 % interval, clusters as the unit.

    Wilson's score interval with the number of independent tokens that would have the clustered standard error, and
    Student's quantile (Korn and Graubard 1998, Survey Methodology 24, for proportions of clustered samples). It stays
    within 0 and 1. Where all windows agree in all tokens nothing can be said of their spread; each token then counts.
    `hits` (tokens,) and `clusters` (tokens,), the number of the window.
    """
    sums, counts = cluster_sums(hits, clusters)
    n, share = len(sums), float(sums.sum() / counts.sum())
    error = clustered_standard_error(sums, counts)
    if n < MIN_WINDOWS or error is None:
        return Estimate(share, note=too_little_text(n))
    tokens = float(counts.sum())
    independent = min(tokens, share * (1 - share) / error**2) if error else tokens
    low, high = score_interval(share, independent, student_quantile((1 + LEVEL) / 2, n - 1))
    return Estimate(share, low, high, error)


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees of freedom, else by Abramowitz and Stegun 26.7.5."""
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z = NormalDist().inv_cdf(probability)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3 + g4 / freedom**4


def score_interval(share: float, trials: float, z: float) -> tuple[float, float]:
    """The score interval of Wilson 1927, valid near 0 and 1, unlike the normal one."""
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # the bounds are exactly 0 and 1 at the ends; rounding must not push them inside
    return 0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half


def exponential(estimate: Estimate) -> Estimate:
    """The estimate of exp(x): bounds transformed, standard error by the delta method.

    Raises:
        DataError: if exp(x) is beyond all numbers, as for the losses of a damaged model.
    """
    if max(estimate.value, estimate.high or 0.0) > _LARGEST:
        raise DataError(
            f"a perplexity of exp({estimate.value:.4g}) is beyond all numbers: one of the models is damaged; fetch or "
            "write it again"
        )
    value = math.exp(estimate.value)
    return Estimate(
        value,
        None if estimate.low is None else math.exp(estimate.low),
        None if estimate.high is None else math.exp(estimate.high),
        None if estimate.standard_error is None else value * estimate.standard_error,
        estimate.note,
    )
