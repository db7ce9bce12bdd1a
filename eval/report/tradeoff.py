"""Loss against size and loss against speed, all models in the same scale."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.eval.charts import Chart, Mark, against
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.memory import Section as Memory
from llmquant.eval.metrics.noise_floor import Section as NoiseFloor
from llmquant.eval.metrics.perplexity import Section as Perplexity
from llmquant.eval.metrics.speed import Section as Speed
from llmquant.eval.result import EvalReport
from llmquant.eval.statistics import Estimate
from llmquant.eval.verdict import winner


def loss_against_size(reports: Sequence[EvalReport]) -> Chart | None:
    """Loss against bits per weight; None with fewer than two models whose size is known."""
    sizes = [size.quantized.bits_per_weight if (size := each.get(Memory)) else None for each in reports]
    return _against(reports, "bits per weight (all weights)", [Estimate(bits) if bits else None for bits in sizes])


def loss_against_speed(reports: Sequence[EvalReport]) -> Chart | None:
    """Loss against the speed of decoding, as a multiple of the baseline's; None with fewer than two models timed."""
    ratios = [speed.decode_ratio if (speed := each.get(Speed)) else None for each in reports]
    speeds = [ratio and Estimate(ratio.median, ratio.q25, ratio.q75) for ratio in ratios]
    dtype = reports[0].baseline.dtype if reports[0].baseline else ""
    return _against(reports, f"speed of decoding, times {dtype} (quartiles)", speeds, base=1.0)


def _against(
    reports: Sequence[EvalReport], x: str, places: Sequence[Estimate | None], base: float | None = None
) -> Chart | None:
    """The loss is the mean KL, without a baseline the perplexity."""
    by_kl, best = any(report.get(Divergence) for report in reports), winner(reports)
    marks = [
        Mark(report.name, place, found, loss, report is best)
        for place, (report, found) in enumerate(zip(reports, places, strict=True))
        if found and (loss := _loss(report, by_kl))
    ]
    if len(marks) < 2:
        return None
    return against(
        marks, x, "mean KL, nats" if by_kl else "perplexity", limits=_limits(reports) if by_kl else (), base=base
    )


def _loss(report: EvalReport, by_kl: bool) -> Estimate | None:
    if by_kl:
        return divergence.kl.estimate if (divergence := report.get(Divergence)) else None
    return perplexity.quantized if (perplexity := report.get(Perplexity)) else None


def _limits(reports: Sequence[EvalReport]) -> list[tuple[str, float]]:
    """The budget, where all have the same, and the noise floor."""
    budgets = {each.limit for report in reports for each in report.budget if each.name == "kl"}
    floors = [floor.kl for report in reports if (floor := report.get(NoiseFloor)) and floor.kl]
    named = [("budget", limit) for limit in budgets] if len(budgets) == 1 else []
    return named + [("noise floor", floor) for floor in floors[:1]]
