"""How far two models are apart: KL(baseline||quantized) of every token, and agreement on the most likely one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from llmquant.eval.charts import Chart, Curve, curves, key
from llmquant.eval.lines import accuracy_text, plus_minus, short_note
from llmquant.eval.markup import Markup, element, join, table
from llmquant.eval.metrics import base
from llmquant.eval.metrics.base import NOTHING, Cell, Column, Panel
from llmquant.eval.metrics.noise_floor import Section as NoiseFloor
from llmquant.eval.scoring import TokenScores
from llmquant.eval.statistics import Estimate, Floats, cluster_bootstrap, cluster_share, cluster_sums
from llmquant.words import number, percent

if TYPE_CHECKING:
    from llmquant.eval.pair import Pair
    from llmquant.eval.result import EvalReport

PLACE = 40
LIMITS = {"kl": ("KL", "kl.estimate")}
_BUCKETS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
_LOG10_KL = (-8.0, 2.0)


@dataclass(frozen=True)
class Kl:
    """KL(baseline||quantized) per token, in nats; the mean has an interval as in `Estimate`."""

    mean: float
    low: float | None
    high: float | None
    standard_error: float | None
    median: float
    p90: float
    p99: float
    p999: float
    max: float
    note: str | None = None

    @property
    def estimate(self) -> Estimate:
        """The mean with its interval."""
        return Estimate(self.mean, self.low, self.high, self.standard_error, self.note)


@dataclass(frozen=True)
class ProbabilityShift:
    """Change of the probability of the text's token, quantized less baseline."""

    mean: float
    rms: float


@dataclass(frozen=True)
class Flips:
    """Tokens whose greedy prediction changed between right and wrong."""

    right_to_wrong: int
    wrong_to_right: int


@dataclass(frozen=True)
class ConfidenceBucket:
    """Mean KL of the tokens where the baseline's highest probability lies in [low, high)."""

    low: float
    high: float
    tokens: int
    kl: float | None


@dataclass(frozen=True)
class Histogram:
    """Counts in equal bins of log10(value) from `low` to `high`."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Section(base.Section):
    """Quantized model against baseline on the same tokens."""

    tokens: int
    nonfinite: int
    kl: Kl
    top1_agreement: Estimate
    probability_shift: ProbabilityShift
    flips: Flips
    confidence_buckets: tuple[ConfidenceBucket, ...]
    kl_histogram: Histogram


def measure(pair: Pair, options: base.NoOptions) -> Section:
    """From the scores of all positions."""
    return summarize(pair.scored.tokens, pair.options.seed)


def summarize(scores: TokenScores, seed: int = 0) -> Section:
    """Summarise the finite positions, and count the others; `seed` is of the bootstrap."""
    kept = scores.kept()
    shift = np.exp(-kept.nll_quantized) - np.exp(-kept.nll_baseline)
    before, after = kept.top_baseline == kept.target, kept.top_quantized == kept.target
    return Section(
        tokens=len(kept.kl),
        nonfinite=len(scores.kl) - len(kept.kl),
        kl=_kl(kept, seed),
        top1_agreement=cluster_share(kept.top_baseline == kept.top_quantized, kept.window),
        probability_shift=ProbabilityShift(float(shift.mean()), math.sqrt(float(np.square(shift).mean()))),
        flips=Flips(right_to_wrong=int((before & ~after).sum()), wrong_to_right=int((~before & after).sum())),
        confidence_buckets=_confidence_buckets(kept),
        kl_histogram=kl_histogram(kept.kl),
    )


def _kl(scores: TokenScores, seed: int) -> Kl:
    mean = cluster_bootstrap(*cluster_sums(scores.kl, scores.window), seed=seed, least=0.0)
    median, p90, p99, p999, top = (float(x) for x in np.quantile(scores.kl, [0.5, 0.9, 0.99, 0.999, 1.0]))
    return Kl(mean.value, mean.low, mean.high, mean.standard_error, median, p90, p99, p999, top, mean.note)


def _confidence_buckets(scores: TokenScores) -> tuple[ConfidenceBucket, ...]:
    places = np.clip(np.searchsorted(_BUCKETS, scores.confidence, side="right") - 1, 0, len(_BUCKETS) - 2)
    buckets = []
    for place, (low, high) in enumerate(pairwise(_BUCKETS)):
        kl = scores.kl[places == place]
        buckets.append(ConfidenceBucket(low, high, len(kl), float(kl.mean()) if len(kl) else None))
    return tuple(buckets)


def kl_histogram(kl: Floats) -> Histogram:
    """Counts of per-token KL in 50 equal bins of log10, 1e-8 to 100; the outermost bins take what lies outside."""
    logs = np.log10(np.clip(kl, 10.0 ** _LOG10_KL[0], None))
    counts, _ = np.histogram(np.clip(logs, *_LOG10_KL), bins=np.linspace(*_LOG10_KL, 50 + 1))
    return Histogram(*_LOG10_KL, tuple(counts.tolist()))


def columns(section: Section, report: EvalReport) -> list[Column]:
    """KL and top-1 agreement."""
    kl, top1 = section.kl, section.top1_agreement
    shares = short_note(top1.note)
    if top1.low is not None and top1.high is not None:
        shares = f"[{100 * top1.low:.1f}, {100 * top1.high:.1f}]"
    return [
        Column("KL", _note(report), NOTHING, Cell(number(kl.mean), (plus_minus(kl.estimate),)), remark=kl.note),
        Column("top-1", _TOP1, NOTHING, Cell(percent(top1.value), more=(shares,))),
    ]


_TOP1 = "Share of positions where both models hold the same token most likely; score interval, clustered by window."


def _note(report: EvalReport) -> str:
    floor = report.get(NoiseFloor)
    known = f" Rounding in {report.loss_dtype} adds {number(floor.kl, 2)} to it (noise floor)." if floor else ""
    by_kernels = any(name.startswith("linear_int") and ": reference" not in name for name in report.kernels)
    accuracy = accuracy_text(report.accuracy) if by_kernels else ""  # the reference has none to choose
    return (
        "Mean KL(baseline‖quantized) per token in nats over the whole vocabulary, ± standard error "
        f"clustered by window. Both models computed in {report.loss_note}; the divergence is summed in float64. "
        f"Positions that are not finite are counted, not averaged.{known}{accuracy}"
    )


def words(section: Section, report: EvalReport) -> list[str]:
    """KL, top-1 agreement, and what is wrong."""
    kl = section.kl
    error = plus_minus(kl.estimate) if kl.standard_error is not None else f"({plus_minus(kl.estimate)})"
    found = [
        f"KL {number(kl.mean)} {error} in {report.loss_dtype}",
        f"top-1 agreement {percent(section.top1_agreement.value)}",
    ]
    return [*found, f"{section.nonfinite} positions not finite"] if section.nonfinite else found


def panels(reports: Sequence[EvalReport]) -> list[Panel]:
    """How the KL is spread over tokens, and how it depends on the baseline's confidence."""
    known = [(place, report.name, found) for place, report in enumerate(reports) if (found := report.get(Section))]
    if not known:
        return []
    tiles = [element("figure", chart.svg()) for chart in (kl_curves(known), _by_confidence(known)) if chart]
    parts = [element("div", *tiles, class_="tiles"), _quantiles(known)]
    if len(reports) > 1:
        parts.insert(0, key([report.name for report in reports]))
    return [Panel("Loss by token", join(*parts), _DISTRIBUTION_NOTE)]


Known = Sequence[tuple[int, str, Section]]  # place among the reports, name, what was measured
_DISTRIBUTION_NOTE = (
    "The share of tokens whose KL(baseline‖quantized) is above a value; a curve further left is better. Most of the "
    "mean comes from tokens on which the baseline is undecided: the other chart has it by its highest probability."
)


def kl_curves(known: Known) -> Chart:
    """The share of tokens above each KL, both axes logarithmic, all models in one chart."""
    lines = []
    for place, name, section in known:
        kept = section.kl_histogram
        edges = np.logspace(kept.low, kept.high, len(kept.counts) + 1)[:-1]
        above = np.cumsum(kept.counts[::-1])[::-1] / section.tokens
        shown = (above > 0) & (above < 0.999)
        lines.append(Curve(name, place, edges[shown].tolist(), above[shown].tolist()))
    alt = "Share of tokens above a KL: " + "; ".join(
        f"{name} half above {number(section.kl.median)}, 1 % above {number(section.kl.p99)}"
        for _, name, section in known
    )
    return curves(lines, "KL of a token, nats", "share of tokens above", alt, log_x=True, log_y=True, percent=True)


def _by_confidence(known: Known) -> Chart | None:
    lines, ticks = [], {}
    for place, name, section in known:
        spots = [(at, each) for at, each in enumerate(section.confidence_buckets) if each.kl]
        ticks |= {
            at: f"{100 * each.low:.0f}–{100 * each.high:.0f}" for at, each in enumerate(section.confidence_buckets)
        }
        lines.append(Curve(name, place, [at for at, _ in spots], [each.kl or 0.0 for _, each in spots]))
    if not any(line.x for line in lines):
        return None
    alt = "Mean KL by the baseline's highest probability: " + "; ".join(
        f"{line.name} {number(line.y[0])} where it is least sure, {number(line.y[-1])} where most"
        for line in lines
        if line.y
    )
    how = {"log_y": True, "ticks": list(ticks.items())}
    return curves(lines, "baseline's highest probability, %", "mean KL, nats", alt, **how)


def _quantiles(known: Known) -> Markup:
    head = (
        "model",
        "median",
        "90 %",
        "99 %",
        "99.9 %",
        "max",
        "right → wrong",
        "wrong → right",
        "shift of probability",
    )
    rows = []
    for _, name, section in known:
        kl, shift, flips = section.kl, section.probability_shift, section.flips
        values = (number(value) for value in (kl.median, kl.p90, kl.p99, kl.p999, kl.max))
        moved = f"{100 * shift.mean:+.2f} points, rms {100 * shift.rms:.2f}"
        rows.append((name, *values, str(flips.right_to_wrong), str(flips.wrong_to_right), moved))
    note = "KL of a token at the shares of tokens above; greedy tokens that turned right or wrong; the text's token."
    return join(table(head, rows, named=True), element("p", note, class_="note"))
