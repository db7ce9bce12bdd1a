"""Statistics of two models' answers to the same documents."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmquant.eval.statistics import Estimate
from llmquant.eval.tasks.paired import difference, exact_p, mean, share


def test_share_has_the_published_interval() -> None:
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3."""
    found = share(81, 263)
    assert found.value == pytest.approx(81 / 263)
    assert (found.low, found.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))


@pytest.mark.parametrize(
    ("lost", "won", "p"), [(0, 0, 1.0), (1, 0, 1.0), (6, 0, 2 / 64), (3, 3, 1.0), (1, 9, 22 / 1024)]
)
def test_exact_p_counts_the_splits(lost: int, won: int, p: float) -> None:
    assert exact_p(lost, won) == pytest.approx(p)
    assert exact_p(won, lost) == exact_p(lost, won)


def test_exact_p_of_many_documents() -> None:
    """67,000 documents, 12,000 of them changed; the normal approximation with continuity correction."""
    z = (6200 - 5800 - 1) / math.sqrt(12000)
    assert exact_p(6200, 5800) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=2e-3)


@pytest.mark.parametrize(("lost", "won", "n"), [(12, 4, 100), (0, 5, 44), (3, 0, 30), (31, 30, 500), (0, 0, 50)])
def test_limits_are_where_the_score_test_rejects(lost: int, won: int, n: int) -> None:
    """The statistic again, with the likelihood maximized by brute force in place of Tango's closed form."""
    found = difference(lost, won, n)
    assert found.value == pytest.approx((won - lost) / n)
    for limit, sign in ((found.low, 1), (found.high, -1)):
        assert limit is not None
        assert sign * (won - lost - n * limit) / _deviation(limit, lost, won, n) == pytest.approx(1.959964, abs=2e-3)


def _deviation(delta: float, lost: int, won: int, n: int) -> float:
    shares = np.linspace(max(0.0, -delta), (1 - delta) / 2, 400_001)[1:-1]  # of documents that are lost
    likelihood = lost * np.log(shares) + won * np.log(shares + delta) + (n - lost - won) * np.log1p(-2 * shares - delta)
    best = shares[np.argmax(likelihood)]
    return math.sqrt(n * (2 * best + delta - delta**2))


def test_the_interval_turns_with_the_models() -> None:
    one, other = difference(12, 4, 100), difference(4, 12, 100)
    assert (one.low, one.high) == (pytest.approx(-(other.high or 0)), pytest.approx(-(other.low or 0)))


def test_no_change_leaves_room() -> None:
    """Where nothing flipped, z^2 / (n + z^2) are the limits."""
    found = difference(0, 0, 500)
    assert found.high == pytest.approx(1.959964**2 / (500 + 1.959964**2), rel=1e-6)
    assert found.low == pytest.approx(-(1.959964**2) / (500 + 1.959964**2), rel=1e-6)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    lost, won = rng.multinomial(150, [0.08, 0.04, 0.88], size=600)[:, :2].T
    found = [difference(int(b), int(c), 150) for b, c in zip(lost, won, strict=True)]
    covered = np.mean([(each.low or 0) <= -0.04 <= (each.high or 0) for each in found])
    assert 0.93 <= covered <= 0.975


def test_mean_of_independent_estimates() -> None:
    """Of one it is that one; of four alike the interval is half as wide; weights count."""
    one = share(30, 50)
    assert mean([one], [3]).low == pytest.approx(one.low)
    four = mean([one] * 4, [1] * 4)
    assert four.value == pytest.approx(0.6)
    assert 0.6 - (four.low or 0) == pytest.approx((0.6 - (one.low or 0)) / 2)
    assert (four.high or 0) - 0.6 == pytest.approx(((one.high or 0) - 0.6) / 2)
    assert mean([one, Estimate(0.0)], [3, 1]).value == pytest.approx(0.45)
