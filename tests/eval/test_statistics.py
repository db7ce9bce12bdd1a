"""Statistics against textbook values, closed formulas and simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from llmquant.errors import DataError
from llmquant.eval.statistics import (
    MIN_WINDOWS,
    Estimate,
    Spread,
    _skewness,
    cluster_bootstrap,
    cluster_share,
    cluster_sums,
    clustered_standard_error,
    exponential,
    score_interval,
    spread,
    student_quantile,
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


def testscore_interval_matches_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148; 0 of 20 and 1 of 29
    for successes, trials, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)]:
        found = score_interval(successes / trials, trials, 1.959964)
        assert found == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    assert score_interval(0.0, 20, 1.96)[0] == 0.0
    assert score_interval(1.0, 20, 1.96)[1] == 1.0


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (30, 2.04227), (200, 1.97190)]
)
def test_student_quantile_matches_tables(freedom: int, quantile: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, rel=2e-3)


def test_interval_is_the_naive_bootstrap_t() -> None:
    """Windows of unequal length and no long tail to speak of, resampled one by one."""
    rng = np.random.default_rng(1)
    counts = rng.integers(3, 9, size=40).astype(float)
    sums = counts * rng.normal(0.5, 1.0, size=40)
    found = cluster_bootstrap(sums, counts, seed=3)
    error = clustered_standard_error(sums, counts)
    assert error is not None
    ratios = []
    for _ in range(4000):
        chosen = rng.integers(0, 40, size=40)
        own = clustered_standard_error(sums[chosen], counts[chosen])
        assert own is not None
        ratios.append((sums[chosen].sum() / counts[chosen].sum() - found.value) / own)
    short, long = np.quantile(ratios, [0.025, 0.975])
    assert found.value == pytest.approx(sums.sum() / counts.sum())
    assert found.low is not None
    assert found.high is not None
    # One side may be longer, by twice skewness / sqrt(40); the other is the naive one.
    naive = found.value - long * error, found.value - short * error
    nearer = min(abs(found.low - naive[0]), abs(found.high - naive[1]))
    assert nearer < 0.15 * error
    assert naive[0] - error < found.low < naive[0] + 0.15 * error
    assert naive[1] - 0.15 * error < found.high < naive[1] + error
    assert cluster_bootstrap(sums, counts, seed=3) == found
    assert cluster_bootstrap(sums, counts, seed=4) != found


def test_long_tail_is_on_the_side_of_the_skewness() -> None:
    sums = np.exp(np.random.default_rng(0).normal(0, 1, 16))
    up = cluster_bootstrap(sums, np.ones(16))
    down = cluster_bootstrap(-sums, np.ones(16))
    assert up.low is not None
    assert up.high is not None
    assert down.low is not None
    assert up.high - up.value > 1.5 * (up.value - up.low)
    assert up.standard_error is not None
    deviations = (sums - sums.mean()) / sums.std(ddof=1)
    skewness = 16 / (15 * 14) * float((deviations**3).sum())  # the sample's, by k-statistics
    least = student_quantile(0.975, 15) * (1 + 2 * skewness / math.sqrt(16))
    assert up.high - up.value >= least * up.standard_error
    assert down.value - down.low == pytest.approx(up.high - up.value, rel=0.1)
    assert cluster_bootstrap(sums, np.ones(16), least=up.value).low == up.value


@pytest.mark.parametrize("seed", [3, 16, 41, 176])  # whose resamples alone would give less
def test_the_long_tail_is_never_shorter_than_that_of_student(seed: int) -> None:
    sums = np.random.default_rng(seed).normal(0, 1, 8)
    found = cluster_bootstrap(sums, np.ones(8))
    assert found.low is not None
    assert found.high is not None
    assert found.standard_error is not None
    skewness = _skewness(sums - sums.mean()) / math.sqrt(8)
    long = found.high - found.value if skewness > 0 else found.value - found.low
    least = student_quantile(0.975, 7) * (1 + 2 * abs(skewness)) * found.standard_error
    assert long == pytest.approx(least, rel=1e-9)


def test_resamples_without_spread_make_no_endless_interval() -> None:
    sums = np.where(np.arange(8) == 7, 1.0, 0.0) + np.random.default_rng(0).normal(0, 1e-6, 8)
    found = cluster_bootstrap(sums, np.ones(8))
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low < 30 * (sums.max() - sums.min())


Draw = Callable[[np.random.Generator, int], np.ndarray]
SHAPES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.normal(3.0, 1.0, n), 3.0),
    "lognormal": (lambda rng, n: np.exp(rng.normal(0.0, 1.0, n)), math.exp(0.5)),
}


def coverage(shape: str, windows: int, trials: int, resamples: int) -> float:
    """Share of intervals that hold the true mean; tokens of a window share its level and differ a little."""
    draw, truth = SHAPES[shape]
    rng = np.random.default_rng(windows)
    hits = 0
    for trial in range(trials):
        sums = 50 * draw(rng, windows) + rng.normal(size=windows) * math.sqrt(50) / 10
        found = cluster_bootstrap(sums, np.full(windows, 50.0), seed=trial, resamples=resamples)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    return hits / trials


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("windows", [8, 16])
def test_intervals_cover_the_truth_quickly(shape: str, windows: int) -> None:
    """Two standard errors of 500 trials, 2 points, beyond 93 to 97 %."""
    assert 0.91 <= coverage(shape, windows, 500, 400) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("windows", [8, 16, 64])
def test_intervals_cover_the_truth(shape: str, windows: int) -> None:
    """93 to 97 %, give or take the error of the simulation: two of its standard errors, 0.6 points."""
    assert 0.924 <= coverage(shape, windows, 5000, 1000) <= 0.976


def test_agreement_covers_the_truth_with_windows_as_the_unit() -> None:
    """Windows differ in their share; intervals over tokens as if they were independent cover about 70 % here."""
    rng = np.random.default_rng(2)
    hits = {8: 0, 32: 0}
    for windows in hits:
        for _ in range(1000):
            shares = rng.beta(45, 5, windows)
            agree = rng.random((windows, 100)) < shares[:, None]
            found = cluster_share(agree.ravel(), np.repeat(np.arange(windows), 100))
            assert found.low is not None
            assert found.high is not None
            assert 0 <= found.low <= found.value <= found.high <= 1
            hits[windows] += found.low <= 0.9 <= found.high
    assert all(0.93 <= hit / 1000 <= 0.975 for hit in hits.values())


def test_windows_that_agree_too_well_are_no_more_than_their_tokens() -> None:
    hits = np.concatenate([np.arange(100) < 50 + (window == 0) for window in range(8)])
    found = cluster_share(hits, np.repeat(np.arange(8), 100))
    assert found.standard_error is not None
    assert found.standard_error < 0.002  # far below that of 800 tokens that have nothing to do with each other
    assert (found.low, found.high) == score_interval(401 / 800, 800, student_quantile(0.975, 7))


def test_agreement_of_every_token_still_has_an_interval() -> None:
    found = cluster_share(np.ones(800, dtype=bool), np.repeat(np.arange(8), 100))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low is not None
    assert 0.98 < found.low < 1.0


@pytest.mark.parametrize("windows", [1, 2, 7])
def test_too_little_text_has_no_interval(windows: int) -> None:
    clusters = np.repeat(np.arange(windows), 5)
    mean = cluster_bootstrap(*cluster_sums(np.arange(5.0 * windows), clusters))
    share = cluster_share(np.arange(5 * windows) % 2 == 0, clusters)
    for found in (mean, share, exponential(mean)):
        assert (found.low, found.high, found.standard_error) == (None, None, None)
        assert (found.note or "").startswith(f"too little text: {windows} window")
        assert f"needs {MIN_WINDOWS}" in (found.note or "")


def test_windows_that_do_not_differ_have_a_point() -> None:
    found = cluster_bootstrap(np.full(9, 6.0), np.full(9, 3.0))
    assert (found.low, found.value, found.high, found.standard_error) == (2.0, 2.0, 2.0, 0.0)


def test_exponential_transforms_bounds() -> None:
    found = exponential(Estimate(0.1, 0.0, 0.2, 0.05))
    assert found == Estimate(math.exp(0.1), 1.0, math.exp(0.2), math.exp(0.1) * 0.05)
    assert exponential(Estimate(0.0)) == Estimate(1.0)


def test_spread_gives_quartiles() -> None:
    found = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found.median, found.q25, found.q75, found.runs) == (3.0, 2.0, 4.0, 5)
    assert spread([2.0]) == Spread(2.0, None, None, 1)
    assert spread([1.0, 3.0]) == Spread(2.0, None, None, 2)


@pytest.mark.parametrize("estimate", [Estimate(800.0), Estimate(1.0, 0.5, 710.0)])
def test_a_loss_beyond_all_perplexities_is_an_error_of_ours(estimate: Estimate) -> None:
    with pytest.raises(DataError, match="beyond all numbers"):
        exponential(estimate)
