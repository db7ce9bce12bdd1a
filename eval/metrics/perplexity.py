"""Perplexity of both models, the change between them, and what it allows one to say of the loss.

The words go by the size of the change and by its paired interval, never by the sign alone: a quantized model that is
ahead by 0.1 % is not better, it shows no loss that this text can measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from llmquant.errors import RecipeError
from llmquant.eval.charts import Dot, dots
from llmquant.eval.lines import change, interval, signed_percent
from llmquant.eval.markup import element, join
from llmquant.eval.metrics import base
from llmquant.eval.metrics.base import NOTHING, Cell, Column, Panel
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.noise_floor import Section as NoiseFloor
from llmquant.eval.statistics import MIN_WINDOWS, Estimate, Floats, cluster_bootstrap, cluster_sums, exponential
from llmquant.words import number

if TYPE_CHECKING:
    from llmquant.eval.pair import Facts, Pair
    from llmquant.eval.result import EvalReport

PLACE = 30
ALONE = True
LIMITS = {"perplexity_ratio": ("ppl ratio", "ratio")}

Verdict = Literal[
    "identical",
    "within the noise floor",
    "no measurable loss",
    "unclear",
    "negligible loss",
    "small loss",
    "loss",
    "large loss",
    "too little text",
]

NEGLIGIBLE, SMALL, LARGE = 0.001, 0.01, 0.1  # of perplexity: less is negligible, less is small, this much is large


@dataclass(frozen=True)
class Section(base.Section):
    """Perplexities, and the paired change: log-perplexity of the quantized model less the baseline's, and its exp.

    All but `quantized` is None where there is no baseline.
    """

    baseline: Estimate | None
    quantized: Estimate
    log_difference: Estimate | None
    ratio: Estimate | None
    verdict: Verdict | None


def check(facts: Facts, options: base.NoOptions) -> None:
    """A limit on the ratio needs a baseline."""
    if facts.alone and "perplexity_ratio" in facts.limits:
        raise RecipeError("the budget perplexity_ratio is on a comparison; give a baseline, or lift the budget")


def measure(pair: Pair, options: base.NoOptions) -> Section:
    """From the scores of the finite positions."""
    scores, seed = pair.scored.tokens.kept(), pair.options.seed
    after = exponential(_mean(scores.nll_quantized, scores.window, seed))
    if pair.alone:
        return Section(None, after, None, None, None)
    difference = _mean(scores.nll_quantized - scores.nll_baseline, scores.window, seed)
    sums, counts = cluster_sums(scores.kl, scores.window)
    floor = pair.get(NoiseFloor)
    return Section(
        baseline=exponential(_mean(scores.nll_baseline, scores.window, seed)),
        quantized=after,
        log_difference=difference,
        ratio=exponential(difference),
        verdict=verdict(difference, float(sums.sum() / counts.sum()), floor and floor.kl),
    )


def _mean(values: Floats, window: NDArray[Any], seed: int) -> Estimate:
    return cluster_bootstrap(*cluster_sums(values, window), seed=seed)


def verdict(difference: Estimate, kl: float, noise_floor: float | None) -> Verdict:
    """The word for a paired difference of log-perplexities, beside the mean KL and its noise floor, if measured."""
    if kl == 0:
        return "identical"
    if difference.low is None or difference.high is None:
        return "too little text"
    if noise_floor is not None and kl <= noise_floor:
        return "within the noise floor"
    if difference.low <= 0:  # also where all of the interval lies below zero
        return "no measurable loss" if math.expm1(difference.high) <= SMALL else "unclear"
    size = math.expm1(difference.value)
    if size < NEGLIGIBLE:
        return "negligible loss"
    if size < SMALL:
        return "small loss"
    return "loss" if size < LARGE else "large loss"


def columns(section: Section, report: EvalReport) -> list[Column]:
    """Perplexity with the change, and the word for it."""
    after = Cell(number(section.quantized.value, 4), (interval(section.quantized),))
    if section.baseline is None or section.ratio is None:
        remark = section.quantized.note
        return [Column("perplexity", _note(report), NOTHING, after, min_width=len("perplexity"), remark=remark)]
    text, bracket, bounds = change(section.ratio).partition("[")
    before = Cell(number(section.baseline.value, 4), (interval(section.baseline),))
    after = Cell(after.text, after.below, more=(text, bracket + bounds))
    return [
        Column("perplexity", _note(report), before, after, min_width=len("perplexity")),
        Column(
            "loss of perplexity", _WORDS, Cell("baseline"), _word(section, report),
            words=True, min_width=len("perplexity"),
        ),
    ]  # fmt: skip


def _word(section: Section, report: EvalReport) -> Cell:
    mood = "bad" if section.verdict in ("loss", "large loss") else ""  # and no colour that praises
    badges = [element("span", verdict_text(section), class_=f"badge {mood}")]
    divergence = report.get(Divergence)
    if divergence and divergence.nonfinite:
        badges.append(element("span", f"{divergence.nonfinite} positions not finite", class_="badge bad"))
    return Cell(verdict_text(section), page=join(*badges))


def verdict_text(section: Section) -> str:
    """The verdict with the size that it goes by, such as "small loss +0.8 %"; "" where there is none."""
    ratio, word = section.ratio, section.verdict
    if ratio is None or word is None:
        return ""
    if word in ("negligible loss", "small loss", "loss", "large loss"):
        return f"{word} {signed_percent(ratio.value)}"
    if word in ("no measurable loss", "unclear") and ratio.high is not None and ratio.high > 1:
        return f"{word}, at most {signed_percent(ratio.high)}"
    return word


def words(section: Section, report: EvalReport) -> list[str]:
    """The change, with the word that says what it means."""
    if section.ratio is None:
        return [f"perplexity {number(section.quantized.value, 4)} {interval(section.quantized)}"]
    return [f"perplexity {change(section.ratio)} ({section.verdict})"]


def panels(reports: Sequence[EvalReport]) -> list[Panel]:
    """Perplexities with that of the baseline, and the paired changes."""
    known = [(place, report.name, found) for place, report in enumerate(reports) if (found := report.get(Section))]
    if not known:
        return []
    first = known[0][2].baseline
    rows = [Dot(reports[0].against or "", None, first)] if first else []
    rows += [Dot(name, place, section.quantized) for place, name, section in known]
    changes = [Dot(name, place, section.ratio) for place, name, section in known if section.ratio]
    charts = [dots(rows, "perplexity", base=first.value if first else None)]
    charts += [dots(changes, "perplexity over the baseline's", base=1.0)] if changes else []
    tiles = element("div", *(element("figure", chart.svg()) for chart in charts), class_="tiles")
    note = "With 95 % intervals." + (
        " That of the ratio is paired, token by token, and so much narrower." * bool(changes)
    )
    return [Panel("Perplexity", tiles, note)]


_WORDS = (
    "By the change of perplexity and its paired 95 % interval. “no measurable loss”: the interval reaches zero, "
    f"and ends below +{100 * SMALL:g} %; “unclear”: it reaches zero and ends above that, so more text is needed. Else "
    f"the loss is real, and its size gives the word: below {100 * NEGLIGIBLE:g} % negligible, below {100 * SMALL:g} % "
    f"small, from {100 * LARGE:g} % large. “identical”: KL is zero. “within the noise floor”: KL does not exceed what "
    "rounding of activations adds. A model that is ahead by chance is not called better. “within error” beside a "
    "budget: the limit lies inside the interval of the measurement."
)


def _note(report: EvalReport) -> str:
    text = report.protocol
    several = f"each begins with the {text.prefix_tokens} tokens that the tokenizer puts in front of a text"
    bos = {0: "no BOS token", 1: "each begins with the BOS token"}.get(text.prefix_tokens, several)
    documents = "1 document" if text.documents == 1 else f"{text.documents} documents"
    paired = "; the change in percent is paired, token by token" if report.baseline else ""
    named = "" if text.name == "tokens" else f"Protocol {text.name}: "
    return (
        f"{named}exp of the mean negative log-likelihood of {text.scored_tokens:,} tokens of {text.source} "
        f"({documents}): {text.windows} windows of {text.length} tokens, stride {text.stride}, {bos}, each token "
        f"scored once. Token ids {text.data_hash}. 95 % intervals with the window as the unit (bootstrap-t, seed "
        f"{report.seed}), none below {MIN_WINDOWS} windows{paired}. Measured in {report.loss_note}."
    )
