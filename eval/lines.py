"""Numbers as people read them, for the page, the table and the one-line verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmquant.eval.result import ComparisonSection, EvalReport, KlSection
from llmquant.eval.statistics import Estimate, Spread
from llmquant.words import bytes_text as bytes_text


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits, without an exponent between 0.0001 and a million."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    text = f"{value:#.{digits}g}"
    return f"{value:.0f}" if "e" in text or text.endswith(".") else text


def interval(estimate: Estimate, digits: int = 3) -> str:
    """ "[low, high]", or why there is none."""
    if estimate.low is None or estimate.high is None:
        return short_note(estimate.note)
    return f"[{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def short_note(note: str | None) -> str:
    """Why there is no interval, in the words that fit under a number."""
    return (note or "no interval").partition(":")[0]


def plus_minus(kl: KlSection) -> str:
    """The standard error of a KL, such as "± 0.0002", or why there is none."""
    return short_note(kl.note) if kl.standard_error is None else f"± {number(kl.standard_error, 2)}"


def verdict_text(comparison: ComparisonSection) -> str:
    """The verdict with the size that it goes by, such as "small loss +0.8 %"."""
    ratio, word = comparison.perplexity_ratio, comparison.verdict
    if word in ("negligible loss", "small loss", "loss", "large loss"):
        return f"{word} {signed_percent(ratio.value)}"
    if word in ("no measurable loss", "unclear") and ratio.high is not None and ratio.high > 1:
        return f"{word}, at most {signed_percent(ratio.high)}"
    return word


def signed_percent(ratio: float) -> str:
    """A ratio as a signed percentage, such as "+2.1 %"."""
    return f"{100 * (ratio - 1):+.{_digits(ratio)}f} %"


def _digits(ratio: float) -> int:
    size = abs(ratio - 1)
    return 0 if size >= 1 else 1 if size >= 0.01 else 2 if size >= 0.001 or size == 0 else 3


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * value:.{digits}f} %"


def change(ratio: Estimate) -> str:
    """A ratio as a signed percentage with its interval, such as "+2.1 % [+1.9, +2.4]"."""
    text, digits = signed_percent(ratio.value), _digits(ratio.value)
    if ratio.low is None or ratio.high is None:
        return text
    return f"{text} [{100 * (ratio.low - 1):+.{digits}f}, {100 * (ratio.high - 1):+.{digits}f}]"


def speed_text(speed: Spread | None) -> str:
    """Median tokens per second."""
    return "–" if speed is None else number(speed.median)


def quartiles(speed: Spread | None) -> str:
    """The quartiles, such as "412–430"; nothing where too few rounds give none."""
    if speed is None or speed.q25 is None or speed.q75 is None:
        return ""
    return f"{number(speed.q25)}–{number(speed.q75)}"


def speedup(ratio: Spread) -> tuple[str, str]:
    """Quantized over baseline with its quartiles, and "faster", "slower" or, where they do not tell, "equal"."""
    if ratio.q25 is None or ratio.q75 is None:
        return f"{ratio.median:.2f}x", "equal"
    kind = "slower" if ratio.q75 < 1 else "faster" if ratio.q25 > 1 else "equal"
    return f"{ratio.median:.2f}x ({ratio.q25:.2f}–{ratio.q75:.2f})", kind


def rounds_text(ratio: Spread) -> str:
    """How many rounds a ratio comes from."""
    return f"{ratio.runs} round{'' if ratio.runs == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class SpeedLine:
    """One phase of the speed against the baseline in one dtype, ready to print."""

    phase: str
    against: str
    ratio: str
    kind: str
    speeds: str
    rounds: str


def speed_comparisons(report: EvalReport) -> list[SpeedLine]:
    """Prefill and decode, each against the baseline in its own dtype and, where that is another, the fastest one."""
    protocol, quantized = report.speed_protocol, report.quantized.speed
    if protocol is None or quantized is None:
        return []
    found, dtypes = [], [each.dtype for each in protocol.dense]
    for phase, fastest in (("prefill", protocol.fastest_prefill), ("decode", protocol.fastest_decode)):
        for dense in protocol.dense:
            if dense.dtype not in (dtypes[0], fastest):
                continue
            ratio = getattr(dense, f"{phase}_speedup")
            words = [dense.dtype, *(["the checkpoint's"] if dense.dtype == dtypes[0] else [])]
            words += ["the fastest"] if dense.dtype == fastest and len(dtypes) > 1 else []
            speeds = f"{speed_text(getattr(dense, phase))} → {speed_text(getattr(quantized, phase))}"
            found.append(SpeedLine(phase, ", ".join(words), *speedup(ratio), speeds, rounds_text(ratio)))
    return found


def kernels_text(kernels: Mapping[str, int]) -> str:
    """Kernels with their number of layers, such as "linear_int4: avx512vnni, exact (28 layers)"."""
    return "; ".join(f"{name} ({count} layer{'' if count == 1 else 's'})" for name, count in kernels.items())


def kernels_line(report: EvalReport) -> str:
    """Which kernels ran and in which accuracy, while the loss was measured and while the speed was; "" if not known."""
    scored = kernels_text(report.kernels)
    timed = kernels_text(report.speed_protocol.kernels) if report.speed_protocol else ""
    if not timed or timed == scored:
        return scored
    return f"loss by {scored}; speed by {timed}" if scored else f"speed by {timed}"


def _in_brackets(against: str) -> str:
    """ "bfloat16 (the checkpoint's)" of "bfloat16, the checkpoint's", for a sentence that has commas of its own."""
    dtype, comma, words = against.partition(", ")
    return f"{dtype} ({words})" if comma else dtype


def _kl(kl: KlSection) -> str:
    known = kl.standard_error is not None
    return f"{number(kl.mean)} {plus_minus(kl)}" if known else f"{number(kl.mean)} ({plus_minus(kl)})"


def verdict_line(report: EvalReport) -> str:
    """One sentence with size, loss, speed and budget."""
    comparison, parts = report.comparison, []
    if report.quantized.bits_per_weight is not None:
        parts.append(f"{number(report.quantized.bits_per_weight)} bits per weight")
    if report.size_ratio is not None:
        parts.append(f"{number(report.size_ratio)}x smaller")
    parts.append(f"perplexity {change(comparison.perplexity_ratio)} ({comparison.verdict})")
    parts.append(f"KL {_kl(comparison.kl)} in {report.loss_dtype}")
    parts.append(f"top-1 agreement {percent(comparison.top1_agreement.value)}")
    parts += [
        f"{each.phase} {each.ratio} of {_in_brackets(each.against)}"
        for each in speed_comparisons(report)
        if each.phase == "decode"
    ]
    if comparison.nonfinite:
        parts.append(f"{comparison.nonfinite} positions not finite")
    if report.budget:
        failed = [each.name for each in report.budget if not each.passed]
        parts.append(f"budget FAILED ({', '.join(failed)})" if failed else "budget passed")
    return ", ".join(parts)
