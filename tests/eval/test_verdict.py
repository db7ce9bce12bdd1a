"""Who wins, who is beaten, and what cannot be told: on reports whose sums of windows are made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmquant.eval import verdict as module
from llmquant.eval.metrics.windows import Section as Windows
from llmquant.eval.result import BudgetVerdict, EvalReport
from llmquant.eval.statistics import Estimate, cluster_bootstrap
from llmquant.eval.verdict import Difference, difference, verdict, winner
from tests.eval.conftest import change

COUNT, TOKENS = 32, 20


def _made(
    report: EvalReport, name: str, kl: float, bits: float | None, *, noise: float = 0.0, **given: Any
) -> EvalReport:
    """A report of that mean KL and size; candidates of one noise share the windows' spread, which pairing cancels."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.2 * kl, COUNT)
    own = np.random.default_rng(sum(name.encode())).normal(0, 1, COUNT) * noise
    sums = TOKENS * (kl + shared - shared.mean() + own - own.mean())
    losses = TOKENS * (2.0 + 0.1 * kl + rng.normal(0, 0.5, COUNT))
    windows = Windows((TOKENS,) * COUNT, tuple(losses.tolist()), (TOKENS * 2.0,) * COUNT, tuple(sums.tolist()))
    memory = replace(report.sections["memory"].quantized, bits_per_weight=bits)
    divergence = replace(report.sections["divergence"].kl, mean=float(sums.sum() / (COUNT * TOKENS)))
    made = change(report, memory={"quantized": memory}, divergence={"kl": divergence})
    return replace(made, name=name, budget=(), sections={**made.sections, "windows": windows}, **given)


def _limit(report: EvalReport, *, passed: bool, certain: bool = True) -> EvalReport:
    return replace(report, budget=(BudgetVerdict("kl", 0.05, 0.04, passed, certain),))


def test_the_difference_is_paired_by_window(report) -> None:
    one, other = _made(report, "a", 0.03, 4.5), _made(report, "b", 0.02, 4.5)
    found = difference(one, other)
    assert found is not None
    sums = np.asarray(one[Windows].kl) - np.asarray(other[Windows].kl)
    assert found.kl == cluster_bootstrap(sums, np.full(COUNT, float(TOKENS)), seed=one.seed)
    assert found.kl is not None
    assert found.kl.value == pytest.approx(0.01)
    assert found.certain
    ours, theirs = (np.sum(each[Windows].nll_quantized) / (COUNT * TOKENS) for each in (one, other))
    assert found.perplexity_ratio.value == pytest.approx(np.exp(ours - theirs))


def test_windows_that_one_could_not_score_are_left_out(report) -> None:
    one, other = _made(report, "a", 0.03, 4.5), _made(report, "b", 0.02, 4.5)
    windows = one[Windows]
    spoilt = replace(windows, tokens=(3, *windows.tokens[1:]), kl=(900.0, *windows.kl[1:]))
    found = difference(change(one, windows=vars(spoilt)), other)
    assert found is not None
    assert found.kl is not None
    assert found.kl.value < 0.05


def test_reports_of_other_windows_or_baselines_have_no_difference(report) -> None:
    one, other = _made(report, "a", 0.03, 4.5), _made(report, "b", 0.02, 4.5)
    assert difference(one, replace(other, protocol=replace(other.protocol, data_hash="sha256:other"))) is None
    assert difference(one, replace(other, baseline=None)) is None
    assert difference(replace(one, sections={}), other) is None


def test_the_smallest_that_keeps_its_budget_wins(report) -> None:
    large, small, tiny = (
        _limit(_made(report, name, kl, bits), passed=passed)
        for name, kl, bits, passed in (
            ("large", 0.01, 8.5, True),
            ("small", 0.04, 4.5, True),
            ("tiny", 0.3, 2.5, False),
        )
    )
    assert winner([large, small, tiny]) is small
    assert winner([small]) is None
    assert winner([tiny, tiny]) is None
    assert winner([replace(each, budget=()) for each in (large, small)]) is None
    assert verdict([large, small, tiny]) == (
        "small wins: the smallest that keeps its budget (4.50 bits per weight, KL 0.0400)."
    )
    assert verdict([small, tiny]) == "small wins: only it keeps its budget (4.50 bits per weight, KL 0.0400)."
    assert verdict([tiny, _limit(large, passed=False)]) == (
        "No candidate keeps its budget: tiny is over kl, large is over kl."
    )
    assert (verdict([large, _limit(small, passed=True, certain=False)]) or "").endswith(
        "; its kl lies within error of the limit."
    )


def test_ties_of_size_go_by_the_paired_test(report) -> None:
    one, better = (_limit(_made(report, name, kl, 4.5), passed=True) for name, kl in (("rtn", 0.04), ("gptq", 0.03)))
    said = verdict([one, better]) or ""
    assert said.startswith("gptq wins: the smallest")
    assert winner([one, better]) is better
    assert "; rtn is as small, with a KL higher by 0.0100 [" in said
    same = _limit(_made(report, "other", 0.0301, 4.51, noise=0.01), passed=True)
    said = verdict([same, better]) or ""
    assert "other is as small, and their KL cannot be told apart (other less gptq: 0.000100 [-" in said
    bare = replace(one, sections={key: value for key, value in one.sections.items() if key != "windows"})
    assert "nothing tells whether that is beyond the error" in (verdict([bare, better]) or "")


def test_without_a_budget_it_says_who_is_beaten(report) -> None:
    large, small = _made(report, "large", 0.01, 8.5), _made(report, "small", 0.04, 4.5)
    assert verdict([large, small]) == (
        "No budget was set, so no winner is named; each candidate trades size against loss: none is beaten in both."
    )
    worse = _made(report, "worse", 0.06, 4.5)
    said = verdict([large, small, worse]) or ""
    assert "small beats worse: as small, with a KL lower by 0.0200 [" in said
    assert "beats small" not in said
    wasteful = _made(report, "wasteful", 0.0401, 6.0, noise=0.01)
    said = verdict([small, wasteful]) or ""
    assert "small is smaller than wasteful, and their KL cannot be told apart (wasteful less small: 0.000100 [-" in said
    said = verdict([small, _made(report, "packed", 0.03, None)]) or ""
    assert said.endswith("; the size of packed is not known.")


def test_one_report_or_none_compared_has_no_verdict(report) -> None:
    one = _made(report, "a", 0.03, 4.5)
    assert verdict([one]) is None
    assert verdict([replace(each, sections={}) for each in (one, one)]) is None


_NEAR = (("small", 0.04, 4.5), ("better", 0.03, 4.6))


def test_sizes_two_percent_apart_are_not_the_same(report) -> None:
    small, better = (
        _limit(_made(report, *each), passed=True) for each in (("small", 0.04, 4.5), ("better", 0.03, 4.6))
    )
    assert (verdict([better, small]) or "").startswith("small wins: the smallest that keeps its budget")


def test_an_interval_that_touches_zero_is_not_certain(report) -> None:
    ratio = Estimate(1.0)
    for low, high, certain in ((0.0, 0.2, False), (-0.2, 0.0, False), (0.01, 0.2, True), (-0.2, -0.01, True)):
        assert Difference(Estimate(0.1, low, high), ratio).certain is certain
    one = _made(report, "one", 0.03, 4.5)
    same = difference(one, replace(one, name="same"))
    assert same is not None
    assert not same.certain


def test_what_is_hardly_smaller_is_as_small(report) -> None:
    one, better = _made(report, "one", 0.04, 4.5), _made(report, "better", 0.03, 4.49)
    assert "better beats one: as small, with a KL lower by 0.0100 [" in (verdict([one, better]) or "")
    alike = _made(report, "alike", 0.0401, 4.49, noise=0.01)
    assert "none is beaten in both" in (verdict([one, alike]) or "")


def test_of_several_that_beat_one_that_of_least_kl_is_named(report) -> None:
    beaten, good, best = (
        _made(report, name, kl, 4.5) for name, kl in (("beaten", 0.06), ("good", 0.04), ("best", 0.02))
    )
    said = verdict([beaten, good, best]) or ""
    assert "best beats beaten" in said
    assert "best beats good" in said
    assert "good beats" not in said


def test_many_candidates_cost_a_few_tests_each(report, monkeypatch) -> None:
    """On a front of sizes and losses everybody is smaller than those of lower KL; nobody is tested against all."""
    done: list[int] = []

    def count(sums, counts, *, seed):
        done.append(seed)
        return cluster_bootstrap(sums, counts, seed=seed, resamples=100)

    monkeypatch.setattr(module, "cluster_bootstrap", count)
    front = [_made(report, f"c{i}", 0.01 * 1.1**i, 8 - 0.1 * i) for i in range(40)]
    assert "none is beaten in both" in (verdict(front) or "")
    assert len(done) <= 6 * len(front)
    done.clear()
    alike = [_made(report, f"c{i}", 0.01 * 1.1**i, 4.5) for i in range(40)]
    assert (verdict(alike) or "").endswith("; 29 more are beaten.")
    assert len(done) <= 6 * len(alike)
    done.clear()
    said = verdict([_limit(each, passed=True) for each in alike]) or ""
    assert said.endswith("; 36 more are of this size, with higher KL.")
    assert len(done) == 3
