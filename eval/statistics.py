"""Intervals for numbers measured on text.

Tokens of one window are not independent, so the window is the unit: standard errors are clustered by window, and the
bootstrap resamples windows. A mean over tokens is a ratio of two sums over windows (values, tokens), resampled
together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK_ELEMENTS = 4_000_000  # resampling weights held at once

Verdict = Literal["indistinguishable", "same perplexity", "worse", "better", "too little text"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; `low` and `high` are None where one window gives no interval."""

    value: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of repeated timings."""

    median: float
    q25: float
    q75: float
    runs: int


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles (linear interpolation) of at least one value."""
    q25, median, q75 = np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.5, 0.75])
    return Spread(float(median), float(q25), float(q75), len(values))


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


def cluster_bootstrap(sums: Floats, counts: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean over tokens with a 95 % interval from resampling whole clusters.

    Percentiles are widened for few clusters (the expanded percentile interval of Hesterberg 2015, doi
    10.1080/00031305.2015.1089789, section 5.3), because plain percentiles are too narrow there.

    Args:
        sums: (clusters,) sum of values.
        counts: (clusters,) number of values.
        seed: of the resampling.
        resamples: number of bootstrap samples.
    """
    n = len(sums)
    value = float(sums.sum() / counts.sum())
    if n < 2:
        return Estimate(value)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _CHUNK_ELEMENTS // n)
    for begin in range(0, resamples, step):
        weights = rng.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - begin)).astype(np.float64)
        means[begin : begin + step] = (weights @ sums) / (weights @ counts)
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_quantile((1 + LEVEL) / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), clustered_standard_error(sums, counts))


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


def wilson(successes: int, trials: int) -> Estimate:
    """Share of successes with the 95 % score interval of Wilson 1927 (valid near 0 and 1, unlike the normal one)."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"wanted 0 <= successes <= trials and a trial, got {successes} of {trials}")
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # the bounds are exactly 0 and 1 at the ends; rounding must not push them inside
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Estimate(share, low, high, math.sqrt(share * (1 - share) / trials))


def exponential(estimate: Estimate) -> Estimate:
    """The estimate of exp(x): bounds transformed, standard error by the delta method."""
    value = math.exp(estimate.value)
    return Estimate(
        value,
        None if estimate.low is None else math.exp(estimate.low),
        None if estimate.high is None else math.exp(estimate.high),
        None if estimate.standard_error is None else value * estimate.standard_error,
    )


def verdict(difference: Estimate, kl: float, noise_floor: float | None) -> Verdict:
    """What the paired difference of log-perplexity and the KL allow one to say.

    Near the baseline neither number ranks models (arXiv 2606.19558), so both within noise is "indistinguishable".
    Without a measured noise floor, models that differ at all have at most the "same perplexity".

    Args:
        difference: log-perplexity of the quantized model less the baseline's.
        kl: mean KL(baseline||quantized).
        noise_floor: mean KL that the baseline's own rounding causes, if it was measured.
    """
    if difference.low is None or difference.high is None:
        return "too little text"
    if difference.low > 0:
        return "worse"
    if difference.high < 0:
        return "better"
    return "indistinguishable" if kl <= (noise_floor or 0.0) else "same perplexity"
