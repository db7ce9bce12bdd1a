"""From the health of weights to findings: what is damage, what costs accuracy, and what only deserves a look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from llmquant.debugging.findings import Finding, Severity
from llmquant.debugging.weight_health import OUTLIER, WeightHealth
from llmquant.spec import Scheme
from llmquant.words import number, percent, shortened

_WRITE_AGAIN = "quantize again, and check this weight in the model it was made from"
_ENOUGH = 64  # codes for each code that there is, before one of them can be missed
_FEW_OUTLIERS = 0.05  # of all scales; more are no outliers


def symptoms(weight: WeightHealth) -> Iterator[Finding]:
    """What one weight shows."""
    yield from _bad_scales(weight)
    yield from _codes(weight)
    yield from _dead(weight)


def _bad_scales(weight: WeightHealth) -> Iterator[Finding]:
    scales = weight.scales
    for kind, count, words in (
        ("scale-nan", scales.nan, "NaN"),
        ("scale-infinite", scales.infinite, "infinite"),
        ("scale-zero", scales.zero, "zero above codes that are not, so that their weights are lost"),
    ):
        if count:
            yield _finding("damaged", kind, weight, f"{count} of {scales.count} scales are {words}", _WRITE_AGAIN)
    if weight.input_scale is not None and not 0 < weight.input_scale < float("inf"):
        what = f"the scale of its activations is {weight.input_scale}"
        yield _finding("damaged", "input-scale", weight, what, _WRITE_AGAIN)
    if scales.subnormal:
        what = f"{scales.subnormal} of {scales.count} scales are subnormal in {scales.dtype}: they have lost precision"
        yield _finding("warning", "scale-subnormal", weight, what, "store scales in a wider dtype, or keep this weight")
    if 0 < scales.outliers <= _FEW_OUTLIERS * scales.count and scales.largest and scales.median:
        what = (
            f"{scales.outliers} of {scales.count} scales are more than {OUTLIER:g} times the median (largest "
            f"{number(scales.largest / scales.median)} times): a few weights there are far larger than their neighbours"
        )
        advice = "smaller groups confine them; `llmquant debug` tells whether they cost anything"
        yield _finding("note", "scale-outlier", weight, what, advice)


def _codes(weight: WeightHealth) -> Iterator[Finding]:
    scheme, codes = Scheme.parse(weight.scheme), weight.codes
    possible = 1 << scheme.bits
    if codes.count >= possible * _ENOUGH and codes.used <= possible // 2:
        what = (
            f"uses {codes.used} of the {possible} codes of {scheme} ({number(codes.entropy)} bits of information): as "
            "good as fewer bits"
        )
        yield _finding("warning", "few-codes", weight, what, "its scales are too large; quantize this weight again")
    # The largest weight of each group is at an end, and a flat histogram has its share there; more was cut off.
    expected = 2 / possible + _one_of_each_group(weight)
    if scheme.bits >= 4 and codes.at_ends > expected:
        what = f"{percent(codes.at_ends)} of its codes are at the ends of the range: weights were clipped"
        yield _finding("warning", "saturated", weight, what, "its scales are too small; quantize this weight again")


def _one_of_each_group(weight: WeightHealth) -> float:
    """The share that one weight of each scale is."""
    return weight.scales.count / weight.codes.count


def _dead(weight: WeightHealth) -> Iterator[Finding]:
    codes, (rows, columns) = weight.codes, weight.shape
    for kind, found, count, words in (
        ("dead-rows", codes.dead_rows, rows, "output channels"),
        ("dead-columns", codes.dead_columns, columns, "inputs"),
    ):
        if found:
            what = f"{len(found)} of {count} {words} have only weights of zero: {shortened([*map(str, found)])}"
            advice = "right if they are zero in the model it was made from; `llmquant debug` compares"
            yield _finding("warning", kind, weight, what, advice)


def odd_ones(weights: Sequence[WeightHealth]) -> Iterator[Finding]:
    """Weights of fewer bits than nearly all others, of the same kind or of any."""
    everywhere, _ = Counter(Scheme.parse(each.scheme) for each in weights).most_common(1)[0] if weights else (None, 0)
    narrow = [each for each in weights if everywhere and Scheme.parse(each.scheme).bits < everywhere.bits]
    few = narrow if len(narrow) * 10 <= len(weights) else []
    kinds: dict[str, list[WeightHealth]] = {}
    for weight in weights:
        kinds.setdefault(weight.name.rpartition(".")[2], []).append(weight)
    for members in kinds.values():
        usual, count = Counter(Scheme.parse(each.scheme) for each in members).most_common(1)[0]
        odd = [each for each in members if Scheme.parse(each.scheme).bits < usual.bits]
        for each in odd:
            if len(odd) * 4 <= count or each in few:
                what = f"is {each.scheme} where the others of its kind are {usual}"
                yield _finding("warning", "narrower", each, what, f"give it {usual} too, if this was not meant")


def copies(digests: Mapping[str, str]) -> Iterator[Finding]:
    """Weights that are equal to the last bit under different names."""
    together: dict[str, list[str]] = {}
    for name, found in digests.items():
        together.setdefault(found, []).append(name)
    for names in together.values():
        if len(names) > 1:
            yield Finding(
                severity="note", kind="copies", where=tuple(names), what="hold the same codes and scales",
                advice="right where the model ties them; else one was written under the other's name",
            )  # fmt: skip


def _finding(severity: Severity, kind: str, weight: WeightHealth, what: str, advice: str) -> Finding:
    return Finding(severity=severity, kind=kind, where=(weight.name,), what=what, advice=advice)
