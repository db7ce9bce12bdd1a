"""Estimates and spreads as people read them."""

from __future__ import annotations

from llmquant.eval.statistics import Estimate, Spread
from llmquant.words import number


def interval(estimate: Estimate, digits: int = 3) -> str:
    """ "[low, high]", or why there is none."""
    if estimate.low is None or estimate.high is None:
        return short_note(estimate.note)
    return f"[{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def short_note(note: str | None) -> str:
    """Why there is no interval, in the words that fit under a number."""
    return (note or "no interval").partition(":")[0]


def plus_minus(estimate: Estimate) -> str:
    """A standard error, such as "± 0.0002", or why there is none."""
    known = estimate.standard_error
    return short_note(estimate.note) if known is None else f"± {number(known, 2)}"


def signed_percent(ratio: float) -> str:
    """A ratio as a signed percentage, such as "+2.1 %"."""
    return f"{100 * (ratio - 1):+.{_digits(ratio)}f} %"


def _digits(ratio: float) -> int:
    size = abs(ratio - 1)
    return 0 if size >= 1 else 1 if size >= 0.01 else 2 if size >= 0.001 or size == 0 else 3


def change(ratio: Estimate) -> str:
    """A ratio as a signed percentage with its interval, such as "+2.1 % [+1.9, +2.4]"."""
    text, digits = signed_percent(ratio.value), _digits(ratio.value)
    if ratio.low is None or ratio.high is None:
        return text
    return f"{text} [{100 * (ratio.low - 1):+.{digits}f}, {100 * (ratio.high - 1):+.{digits}f}]"


def is_slower(ratio: Spread) -> bool:
    """Whether even the upper quartile lies below 1."""
    return ratio.q75 is not None and ratio.q75 < 1


def speedup(ratio: Spread) -> tuple[str, str]:
    """Quantized over baseline with its quartiles, and "faster", "slower" or, where they do not tell, "equal"."""
    if ratio.q25 is None or ratio.q75 is None:
        return f"{ratio.median:.2f}x", "equal"
    kind = "slower" if is_slower(ratio) else "faster" if ratio.q25 > 1 else "equal"
    return f"{ratio.median:.2f}x ({ratio.q25:.2f}–{ratio.q75:.2f})", kind


def accuracy_text(mode: str | None) -> str:
    """In which accuracy kernels ran, as the end of a footnote; "" where there were none."""
    bits = {"exact": " (activations in 16 bits)", "fast": " (activations in 8 bits)"}.get(mode or "", "")
    return f" The kernels of packed layers ran in accuracy “{mode}”{bits}." if mode else ""
