"""Statistics against textbook values, closed formulas and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmquant.eval.statistics import (
    Estimate,
    cluster_bootstrap,
    cluster_sums,
    clustered_standard_error,
    exponential,
    spread,
    student_quantile,
    verdict,
    wilson,
)


def test_cluster_sums_leave_out_empty_clusters() -> None:
    sums, counts = cluster_sums(np.array([1.0, 2.0, 4.0]), np.array([0, 2, 2]))
    assert (sums.tolist(), counts.tolist()) == ([1.0, 6.0], [1.0, 2.0])


def test_standard_error_with_equal_clusters_is_that_of_their_means() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 5))
    expected = values.mean(1).std(ddof=1) / math.sqrt(12)
    assert clustered_standard_error(values.sum(1), np.full(12, 5.0)) == pytest.approx(expected, rel=1e-12)
    assert clustered_standard_error(np.array([1.0]), np.array([5.0])) is None


def test_wilson_matches_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148; 0 of 20 and 1 of 29
    for successes, trials, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)]:
        found = wilson(successes, trials)
        assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    assert wilson(0, 20).low == 0.0
    assert wilson(20, 20).high == 1.0
    with pytest.raises(ValueError, match="got 3 of 2"):
        wilson(3, 2)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (30, 2.04227), (200, 1.97190)]
)
def test_student_quantile_matches_tables(freedom: int, quantile: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, rel=2e-3)


def test_bootstrap_is_the_naive_bootstrap() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(3, 9, size=40).astype(float)
    sums = counts * rng.normal(0.5, 1.0, size=40)
    found = cluster_bootstrap(sums, counts, seed=3)
    naive = []
    for _ in range(4000):
        chosen = rng.integers(0, 40, size=40)
        naive.append(sums[chosen].sum() / counts[chosen].sum())
    low, high = np.quantile(naive, [0.025, 0.975])
    width = high - low
    assert found.value == pytest.approx(sums.sum() / counts.sum())
    assert found.low is not None
    assert found.high is not None
    assert abs(found.low - low) < 0.08 * width  # 40 clusters: widened by 5 %
    assert abs(found.high - high) < 0.08 * width
    assert found.low < low or found.high > high
    assert cluster_bootstrap(sums, counts, seed=3) == found
    assert cluster_bootstrap(sums, counts, seed=4) != found


def test_bootstrap_covers_the_truth_about_95_percent() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(400):
        centre = rng.normal(size=8)  # tokens of a window share its level: naive token intervals would fail here
        sums = 50 * centre + rng.normal(size=8) * math.sqrt(50)
        found = cluster_bootstrap(sums, np.full(8, 50.0), seed=trial, resamples=1000)
        hits += found.low is not None and found.high is not None and found.low <= 0 <= found.high
    assert 0.90 <= hits / 400 <= 0.985


def test_one_cluster_has_no_interval() -> None:
    assert cluster_bootstrap(np.array([6.0]), np.array([3.0])) == Estimate(2.0)


def test_exponential_transforms_bounds() -> None:
    found = exponential(Estimate(0.1, 0.0, 0.2, 0.05))
    assert found == Estimate(math.exp(0.1), 1.0, math.exp(0.2), math.exp(0.1) * 0.05)
    assert exponential(Estimate(0.0)) == Estimate(1.0)


def test_spread_gives_quartiles() -> None:
    found = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found.median, found.q25, found.q75, found.runs) == (3.0, 2.0, 4.0, 5)


@pytest.mark.parametrize(
    ("difference", "kl", "floor", "expected"),
    [
        (Estimate(0.1, 0.05, 0.15), 0.2, None, "worse"),
        (Estimate(-0.1, -0.15, -0.05), 0.2, None, "better"),
        (Estimate(0.0, -0.1, 0.1), 0.2, None, "same perplexity"),
        (Estimate(0.0, -0.1, 0.1), 0.2, 0.1, "same perplexity"),
        (Estimate(0.0, -0.1, 0.1), 0.1, 0.1, "indistinguishable"),
        (Estimate(0.0, 0.0, 0.0), 0.0, None, "indistinguishable"),
        (Estimate(0.0), 0.0, None, "too little text"),
    ],
)
def test_verdict(difference: Estimate, kl: float, floor: float | None, expected: str) -> None:
    assert verdict(difference, kl, floor) == expected
