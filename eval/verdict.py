"""What a comparison of several candidates says, in a sentence: who wins under the budget, or who is beaten.

Two candidates are compared on the windows that both were measured on, token by token: the difference of their mean KL
has an interval much narrower than either, and where it holds zero they cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmquant.eval.lines import interval
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.memory import Section as Memory
from llmquant.eval.metrics.windows import Section as Windows
from llmquant.eval.result import EvalReport
from llmquant.eval.statistics import Estimate, cluster_bootstrap, exponential
from llmquant.words import listed, number

_SAME_SIZE = 0.005  # relative: sizes closer than this are called the same
_MOST = 3  # tests of one candidate against others of each sort, strongest first: a bootstrap takes a while
_MOST_SAID = 10  # beaten candidates in the sentence


@dataclass(frozen=True, slots=True)
class Difference:
    """One candidate less another, paired by window: of mean KL per token (None without a baseline), and perplexity.

    `perplexity_ratio` is the perplexity of one over that of the other.
    """

    kl: Estimate | None
    perplexity_ratio: Estimate

    @property
    def certain(self) -> bool:
        """Whether the KL of one is lower beyond the error of the measurement."""
        return self.kl is not None and _certain(self.kl)


def difference(one: EvalReport, other: EvalReport) -> Difference | None:
    """How far two reports differ; None if not measured on the same windows against the same baseline.

    Windows in which a model gave numbers that are not finite are left out.
    """
    if (shared := _shared(one, other)) is None:
        return None
    left, right, both = shared
    tokens = np.asarray(left.tokens, dtype=np.float64)[both]
    losses = (np.asarray(left.nll_quantized) - np.asarray(right.nll_quantized))[both]
    return Difference(_between(one, other), exponential(cluster_bootstrap(losses, tokens, seed=one.seed)))


def _shared(one: EvalReport, other: EvalReport) -> tuple[Windows, Windows, NDArray[np.bool_]] | None:
    """The sums of both, and which windows both were measured on."""
    left, right = one.get(Windows), other.get(Windows)
    if left is None or right is None or len(left.tokens) != len(right.tokens):
        return None
    if (one.protocol.data_hash, one.against) != (other.protocol.data_hash, other.against):
        return None
    tokens = np.asarray(left.tokens)
    both = (tokens == np.asarray(right.tokens)) & (tokens > 0)
    return (left, right, both) if both.any() else None


def _between(one: EvalReport, other: EvalReport) -> Estimate | None:
    """The KL of one less that of the other."""
    shared = _shared(one, other)
    if shared is None or not (shared[0].kl and shared[1].kl):
        return None
    left, right, both = shared
    tokens = np.asarray(left.tokens, dtype=np.float64)[both]
    return cluster_bootstrap((np.asarray(left.kl) - np.asarray(right.kl))[both], tokens, seed=one.seed)


def _certain(kl: Estimate) -> bool:
    return kl.low is not None and kl.high is not None and not kl.low <= 0 <= kl.high


def verdict(reports: Sequence[EvalReport]) -> str | None:
    """The sentence; None where there is nothing to compare.

    With budgets: the smallest candidate that keeps its own wins, and among those of one size the one of least KL.
    Without: which candidates are beaten by another in size and KL.
    """
    known = [report for report in reports if report.get(Divergence)]
    if len(known) < 2:
        return None
    judged = [report for report in known if report.budget]
    return _winner(judged) if judged else _beaten(known)


def winner(reports: Sequence[EvalReport]) -> EvalReport | None:
    """The candidate that `verdict` says wins; None without two to compare, and without one that keeps a budget."""
    known = [report for report in reports if report.get(Divergence)]
    return next(iter(_best(known)), None) if len(known) > 1 else None


def _best(known: Sequence[EvalReport]) -> list[EvalReport]:
    """Of those that keep a budget the smallest, the one of least KL first."""
    keep = [report for report in known if report.budget and report.budget_passed]
    least = min(map(_bits, keep), default=0.0)
    return sorted((report for report in keep if _bits(report) <= least * (1 + _SAME_SIZE)), key=_kl)


def _winner(judged: Sequence[EvalReport]) -> str:
    same = _best(judged)
    if not same:
        return f"No candidate keeps its budget: {listed(f'{each.name} is over {each.over_budget}' for each in judged)}."
    best, *others = same
    parts = [f"{best.name} wins: the smallest that keeps its budget ({_facts(best)})"]
    if sum(report.budget_passed for report in judged) == 1:
        parts = [f"{best.name} wins: only it keeps its budget ({_facts(best)})"]
    for other in others[:_MOST]:
        kl = _between(other, best)
        size = f"{other.name} is as small" if _bits(best) < float("inf") else f"{other.name} keeps it too"
        if kl is None:
            parts.append(f"{size}, with a KL of {number(_kl(other))}; nothing tells whether that is beyond the error")
        elif _certain(kl):
            parts.append(f"{size}, with a KL higher by {number(kl.value)} {interval(kl)}")
        else:
            parts.append(f"{size}, and their KL cannot be told apart ({_apart(kl, other, best)})")
    if len(others) > _MOST:
        parts.append(f"{len(others) - _MOST} more are of this size, with higher KL")
    if unsure := [limit.name for limit in best.budget if not limit.certain]:
        parts.append(f"its {listed(unsure)} lies within error of the limit")
    return "; ".join(parts) + "."


def _beaten(known: Sequence[EvalReport]) -> str:
    parts = [part for report in known if (part := _beaten_by(report, known))]
    if len(parts) > _MOST_SAID:
        parts[_MOST_SAID:] = [f"{len(parts) - _MOST_SAID} more are beaten"]
    unknown = [report.name for report in known if _bits(report) == float("inf")]
    parts += [f"the size of {listed(unknown)} is not known"] if unknown else []
    first = "No budget was set, so no winner is named"
    if not parts:
        return f"{first}; each candidate trades size against loss: none is beaten in both."
    return f"{first}; {'; '.join(parts)}."


def _beaten_by(report: EvalReport, known: Sequence[EvalReport]) -> str | None:
    """The candidate that leaves no reason to take this one, if there is one: the one of least KL."""
    size = _bits(report)
    if size == float("inf"):
        return None
    others = [other for other in known if other is not report and _bits(other) <= size * (1 + _SAME_SIZE)]
    better, worse = (
        sorted((other for other in others if (_kl(other) <= _kl(report)) is lower), key=_kl) for lower in (True, False)
    )
    smaller_worse = [other for other in worse if _smaller(other, size)]  # the nearest come first
    for other in (*better[:_MOST], *smaller_worse[:_MOST]):
        kl = _between(report, other)
        if kl is None:
            continue
        if _certain(kl) and kl.value > 0:
            what = "smaller" if _smaller(other, size) else "as small"
            return f"{other.name} beats {report.name}: {what}, with a KL lower by {number(kl.value)} {interval(kl)}"
        if _smaller(other, size) and not _certain(kl):
            told = _apart(kl, report, other)
            return f"{other.name} is smaller than {report.name}, and their KL cannot be told apart ({told})"
    return None


def _smaller(other: EvalReport, size: float) -> bool:
    return _bits(other) < size * (1 - _SAME_SIZE)


def _bits(report: EvalReport) -> float:
    size = report.get(Memory)
    bits = size.quantized.bits_per_weight if size else None
    return float("inf") if bits is None else bits


def _kl(report: EvalReport) -> float:
    return report[Divergence].kl.mean


def _facts(report: EvalReport) -> str:
    size = "" if _bits(report) == float("inf") else f"{number(_bits(report))} bits per weight, "
    return f"{size}KL {number(_kl(report))}"


def _apart(kl: Estimate, one: EvalReport, other: EvalReport) -> str:
    return f"{one.name} less {other.name}: {number(kl.value)} {interval(kl)}"
