"""What a comparison of several candidates says, in a sentence: who wins under the budget, or who is beaten.

Two candidates are compared on the windows that both were measured on, token by token: the difference of their mean KL
has an interval much narrower than either, and where it holds zero they cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmquant.eval.lines import interval
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.memory import Section as Memory
from llmquant.eval.metrics.windows import Section as Windows
from llmquant.eval.result import EvalReport
from llmquant.eval.statistics import Estimate, cluster_bootstrap, exponential
from llmquant.words import listed, number

_SAME_SIZE = 0.005  # relative: sizes closer than this are called the same


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
        kl = self.kl
        return kl is not None and kl.low is not None and kl.high is not None and not kl.low <= 0 <= kl.high


def difference(one: EvalReport, other: EvalReport) -> Difference | None:
    """How far two reports differ; None if not measured on the same windows against the same baseline.

    Windows in which a model gave numbers that are not finite are left out.
    """
    left, right = one.get(Windows), other.get(Windows)
    if left is None or right is None:
        return None
    if (one.protocol.data_hash, one.against) != (other.protocol.data_hash, other.against):
        return None
    tokens = np.asarray(left.tokens, dtype=np.float64)
    both = (tokens == np.asarray(right.tokens)) & (tokens > 0)
    if not both.any():
        return None

    def mean(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
        return cluster_bootstrap((np.asarray(ours) - np.asarray(theirs))[both], tokens[both], seed=one.seed)

    kl = mean(left.kl, right.kl) if left.kl and right.kl else None
    return Difference(kl, exponential(mean(left.nll_quantized, right.nll_quantized)))


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


def _winner(judged: Sequence[EvalReport]) -> str:
    keep = [report for report in judged if report.budget_passed]
    if not keep:
        return f"No candidate keeps its budget: {listed(f'{each.name} is over {each.over_budget}' for each in judged)}."
    least = min(map(_bits, keep))
    same = sorted((report for report in keep if _bits(report) <= least * (1 + _SAME_SIZE)), key=_kl)
    best, *others = same
    parts = [f"{best.name} wins: the smallest that keeps its budget ({_facts(best)})"]
    if len(keep) == 1:
        parts = [f"{best.name} wins: only it keeps its budget ({_facts(best)})"]
    for other in others:
        found = difference(other, best)
        size = f"{other.name} is as small" if least < float("inf") else f"{other.name} keeps it too"
        if found is None or found.kl is None:
            parts.append(f"{size}, with a KL of {number(_kl(other))}; nothing tells whether that is beyond the error")
        elif found.certain:
            parts.append(f"{size}, with a KL higher by {number(found.kl.value)} {interval(found.kl)}")
        else:
            parts.append(f"{size}, and their KL cannot be told apart ({_apart(found.kl)})")
    if unsure := [limit.name for limit in best.budget if not limit.certain]:
        parts.append(f"its {listed(unsure)} lies within error of the limit")
    return "; ".join(parts) + "."


def _beaten(known: Sequence[EvalReport]) -> str:
    parts = [part for report in known if (part := _beaten_by(report, known))]
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
    for other in sorted(known, key=_kl):
        found = difference(report, other) if other is not report and _bits(other) <= size * (1 + _SAME_SIZE) else None
        if found is None or found.kl is None:
            continue
        smaller = _bits(other) < size * (1 - _SAME_SIZE)
        if found.certain and found.kl.value > 0:
            what = "smaller" if smaller else "as small"
            return (
                f"{other.name} beats {report.name}: {what}, with a KL lower by {number(found.kl.value)} "
                f"{interval(found.kl)}"
            )
        if smaller and not found.certain:
            return f"{other.name} is smaller than {report.name}, and their KL cannot be told apart ({_apart(found.kl)})"
    return None


def _bits(report: EvalReport) -> float:
    size = report.get(Memory)
    bits = size.quantized.bits_per_weight if size else None
    return float("inf") if bits is None else bits


def _kl(report: EvalReport) -> float:
    return report[Divergence].kl.mean


def _facts(report: EvalReport) -> str:
    size = "" if _bits(report) == float("inf") else f"{number(_bits(report))} bits per weight, "
    return f"{size}KL {number(_kl(report))}"


def _apart(kl: Estimate) -> str:
    return f"difference {number(kl.value)} {interval(kl)}"
