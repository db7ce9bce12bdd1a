"""A quantized weight beside the one it was made from: scales that are off by a factor, channels that are gone, weights
that are not this module's.

The factor is that of least squares of the dequantized weight Q on the baseline's W, `<Q, W> / <W, W>`. Rounding leaves
it near 1, for rounding errors hardly depend on the weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llmquant.debugging.findings import Finding
from llmquant.spec import Scheme
from llmquant.words import number, percent, shortened

_OFF = 1.2  # a factor that rounding alone does not reach
_OFF_FEW_BITS = 1.4  # of 2 and 3 bits
_SAME_GROUP = 0.9  # of a group, which is few weights
_SAME = 0.8  # cosine from which on two vectors are the same up to a factor
_FOREIGN = 0.5  # cosine below which a weight is another one
_AGAIN = "quantize this weight again: it is not what rounding gives"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightError:
    """A quantized weight against the baseline's.

    Attributes:
        sqnr: in dB; None if they are equal.
        factor: what the scales are times what the weight asks for, by least squares.
    """

    name: str
    sqnr: float | None
    cosine: float
    factor: float


def compare_weights(
    name: str, weight: Tensor, quantized: Tensor, scheme: Scheme | None
) -> tuple[WeightError, list[Finding]]:
    """Compare a dequantized weight with the baseline's, both (out_features, in_features)."""
    one, two = weight.float(), quantized.float()
    groups = _Products.of(one, two, scheme)
    signal, other, product = (float(each.sum()) for each in (groups.signal, groups.other, groups.product))
    noise = max(signal + other - 2 * product, 0.0)
    error = WeightError(
        name=name,
        sqnr=10 * math.log10(max(signal, 1e-300) / noise) if noise else None,
        cosine=product / math.sqrt(signal * other) if signal and other else float(signal == other),
        factor=product / signal if signal else 1.0 if signal == other else math.inf,
    )
    return error, [*_gone(name, one, two), *_factors(error, groups, scheme), *_foreign(error)]


@dataclass(frozen=True, slots=True)
class _Products:
    """Sums of products in each group (out_features, groups): of the weight, of the quantized one, of both."""

    signal: Tensor
    other: Tensor
    product: Tensor

    @classmethod
    def of(cls, one: Tensor, two: Tensor, scheme: Scheme | None) -> _Products:
        size = scheme.group_size if scheme and scheme.group_size and scheme.divides(one.shape[1]) else one.shape[1]
        one, two = (each.reshape(len(each), -1, size) for each in (one, two))
        return cls(*(torch.linalg.vecdot(*pair).double() for pair in ((one, one), (two, two), (one, two))))

    def rows(self) -> _Products:
        """Of whole rows."""
        return _Products(*(each.sum(1, keepdim=True) for each in (self.signal, self.other, self.product)))

    def off(self, limit: float, same: float) -> tuple[Tensor, Tensor]:
        """Where the factor is off by more than exp(limit) though the direction is the same; and all factors."""
        alike = self.product > same * (self.signal * self.other).sqrt()
        factors = torch.where(alike & (self.product > 0), self.product / self.signal, 1.0)
        return factors.log().abs() > limit, factors


def _gone(name: str, weight: Tensor, quantized: Tensor) -> Iterator[Finding]:
    for axis, kind, words in ((1, "dead-channel", "channel"), (0, "dead-input", "input")):
        gone = ((quantized == 0).all(axis) & (weight != 0).any(axis)).nonzero().view(-1).tolist()
        if gone:
            many = f"{words}s {shortened([*map(str, gone)])} are" if gone[1:] else f"{words} {gone[0]} is"
            yield _fault(kind, name, f"{many} zero in the quantized model but not in the baseline")


def _factors(error: WeightError, groups: _Products, scheme: Scheme | None) -> Iterator[Finding]:
    """Scales of the tensor, of channels, or of single groups; the first that explains it."""
    limit = math.log(_OFF if scheme is None or scheme.bits > 3 else _OFF_FEW_BITS)
    if error.cosine > _SAME and abs(math.log(error.factor)) > limit:
        what = f"its scales are {number(error.factor)} x what its weights ask for"
        yield _fault("scale-factor", error.name, what)
        return
    off, factors = groups.rows().off(limit, _SAME)
    if off.any():
        places = off.view(-1).nonzero().view(-1).tolist()
        many = f"channels {shortened([*map(str, places)])}" if places[1:] else f"channel {places[0]}"
        typical, share = number(float(factors[off].median())), percent(len(places) / len(off))
        what = f"the scales of {many} ({share}) are {typical} x what their weights ask for"
        yield _fault("scale-factor", error.name, what)
        return
    off, factors = groups.off(limit, _SAME_GROUP)
    if off.any():
        rows = shortened([*map(str, off.any(1).nonzero().view(-1).tolist())])
        typical = number(float(factors[off].median()))
        what = f"{int(off.sum())} of {off.numel()} scales are {typical} x what their weights ask for (channels {rows})"
        yield _fault("scale-factor", error.name, what)


def _foreign(error: WeightError) -> Iterator[Finding]:
    if error.cosine < _FOREIGN:
        what = (
            f"its weights are not the baseline's (cosine {number(error.cosine)}): swapped, shuffled or of another model"
        )
        yield _fault("foreign", error.name, what)


def _fault(kind: str, name: str, what: str) -> Finding:
    return Finding(severity="fault", kind=kind, where=(name,), what=what, advice=_AGAIN)
