"""From per-token scores to the comparison section of the report."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from llmquant.eval.result import ComparisonSection, ConfidenceBucket, Flips, Histogram, KlSection, ProbabilityShift
from llmquant.eval.scores import TokenScores
from llmquant.eval.statistics import Floats, cluster_bootstrap, cluster_share, cluster_sums, exponential
from llmquant.eval.verdict import verdict

_BUCKETS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
_LOG10_KL = (-8.0, 2.0)
_BINS = 50


def summarize(scores: TokenScores, *, nonfinite: int, noise_floor: float | None, seed: int) -> ComparisonSection:
    """Summarise the finite positions.

    Args:
        scores: finite positions only.
        nonfinite: positions left out because a model gave NaN or Inf.
        noise_floor: KL caused by the rounding of both models' activations, if measured.
        seed: of the bootstrap.
    """
    kl = _kl_section(scores, seed)
    difference = cluster_bootstrap(*cluster_sums(scores.nll_quantized - scores.nll_baseline, scores.window), seed=seed)
    return ComparisonSection(
        tokens=len(scores.kl),
        nonfinite=nonfinite,
        kl=kl,
        top1_agreement=cluster_share(scores.top_baseline == scores.top_quantized, scores.window),
        log_perplexity_difference=difference,
        perplexity_ratio=exponential(difference),
        probability_shift=_shift(scores),
        flips=_flips(scores),
        confidence_buckets=_confidence_buckets(scores),
        kl_histogram=kl_histogram(scores.kl),
        noise_floor=noise_floor,
        verdict=verdict(difference, kl.mean, noise_floor),
    )


def _kl_section(scores: TokenScores, seed: int) -> KlSection:
    mean = cluster_bootstrap(*cluster_sums(scores.kl, scores.window), seed=seed, least=0.0)
    median, p90, p99, p999, top = (float(x) for x in np.quantile(scores.kl, [0.5, 0.9, 0.99, 0.999, 1.0]))
    return KlSection(mean.value, mean.low, mean.high, mean.standard_error, median, p90, p99, p999, top, mean.note)


def _shift(scores: TokenScores) -> ProbabilityShift:
    delta = np.exp(-scores.nll_quantized) - np.exp(-scores.nll_baseline)
    return ProbabilityShift(float(delta.mean()), math.sqrt(float(np.square(delta).mean())))


def _flips(scores: TokenScores) -> Flips:
    before, after = scores.top_baseline == scores.target, scores.top_quantized == scores.target
    return Flips(right_to_wrong=int((before & ~after).sum()), wrong_to_right=int((~before & after).sum()))


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
    edges = np.linspace(*_LOG10_KL, _BINS + 1)
    counts, _ = np.histogram(np.clip(logs, *_LOG10_KL), bins=edges)
    return Histogram(low=_LOG10_KL[0], high=_LOG10_KL[1], counts=tuple(int(count) for count in counts))
