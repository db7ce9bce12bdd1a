"""Numbers as people read them, for the page, the table and the one-line verdict."""

from __future__ import annotations

from collections.abc import Mapping

from llmquant.eval.result import EvalReport
from llmquant.eval.statistics import Estimate, Spread
from llmquant.readable import bytes_text as bytes_text


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
    """ "[low, high]", or a dash where one window gives none."""
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return f"[{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * value:.{digits}f} %"


def change(ratio: Estimate) -> str:
    """A ratio as a signed percentage with its interval, such as "+2.1 % [+1.9, +2.4]"."""
    digits = 1 if abs(ratio.value - 1) >= 0.01 else 2 if abs(ratio.value - 1) >= 0.001 else 3
    text = f"{100 * (ratio.value - 1):+.{digits}f} %"
    if ratio.low is None or ratio.high is None:
        return text
    return f"{text} [{100 * (ratio.low - 1):+.{digits}f}, {100 * (ratio.high - 1):+.{digits}f}]"


def speed_text(speed: Spread | None) -> str:
    """Median tokens per second."""
    return "–" if speed is None else number(speed.median)


def quartiles(speed: Spread | None) -> str:
    """The quartiles, such as "412–430"."""
    return "" if speed is None else f"{number(speed.q25)}–{number(speed.q75)}"


def speedup(ratio: Spread) -> tuple[str, str]:
    """Quantized over baseline with its quartiles, and "faster", "slower" or, where the quartiles hold 1, "equal"."""
    kind = "slower" if ratio.q75 < 1 else "faster" if ratio.q25 > 1 else "equal"
    return f"{ratio.median:.2f}x ({ratio.q25:.2f}–{ratio.q75:.2f})", kind


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


def verdict_line(report: EvalReport) -> str:
    """One sentence with size, loss, speed and budget."""
    comparison, parts = report.comparison, []
    if report.quantized.bits_per_weight is not None:
        parts.append(f"{number(report.quantized.bits_per_weight)} bits per weight")
    if report.size_ratio is not None:
        parts.append(f"{number(report.size_ratio)}x smaller")
    parts.append(f"perplexity {change(comparison.perplexity_ratio)} ({comparison.verdict})")
    error = comparison.kl.standard_error
    parts.append(f"KL {number(comparison.kl.mean)}" + (f" ± {number(error, 2)}" if error is not None else ""))
    parts.append(f"top-1 agreement {percent(comparison.top1_agreement.value)}")
    if report.speed_protocol is not None:
        parts.append(f"decode {speedup(report.speed_protocol.decode_speedup)[0]}")
    if comparison.nonfinite:
        parts.append(f"{comparison.nonfinite} positions not finite")
    if report.budget:
        failed = [each.name for each in report.budget if not each.passed]
        parts.append(f"budget FAILED ({', '.join(failed)})" if failed else "budget passed")
    return ", ".join(parts)
