"""Search the scales (and zeros) of least weighted squared error of round to nearest.

For each group, minimise `sum_k h_k (w_k - Q_k)^2` over grids, every candidate being tried as it would be stored:
first a geometric ladder of scales below and above the one that covers the range (narrower grids clip outliers and
resolve the rest better), with both signs in symmetric schemes; then a few steps that refit the scale to its codes by
least squares, `s = sum_k h_k w_k t_k / sum_k h_k t_k^2` with `t = code - zero`, and move the zero by one.

Legend: R rows, G groups a row, g inputs a group; scale, zero, low, high and errors, `Values`, have a row for each row
of the weight, or one for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from llmquant.numerics.stored_scale import as_stored
from llmquant.spec import Scheme

Values: TypeAlias = Float32[Tensor, "rows groups"]

# Short groups want 0.7 to 1.1 of the covering scale, in fine steps; long rows with outliers a third of it and less.
FACTORS = (*(1.12 * 0.955**step for step in range(11)), *(0.62 * 0.84**step for step in range(7)))
REFITS = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a weight by groups.

    Attributes:
        importance: weight of each input's squared error, or None if all weigh alike.
    """

    values: Float[Tensor, "R G g"]
    importance: Float32[Tensor, "1 G g"] | None

    def steps(self, scale: Values, zero: Values | None, scheme: Scheme) -> Float32[Tensor, "R G g"]:
        """`code - zero` of round to nearest."""
        # A search may multiply by the reciprocal: only the final rounding has to be exact.
        steps = (self.values * scale.reciprocal().unsqueeze(-1)).round_()
        if zero is None:
            return steps.clamp_(scheme.code_min, scheme.code_max)
        return steps.clamp_((scheme.code_min - zero).unsqueeze(-1), (scheme.code_max - zero).unsqueeze(-1))

    def error(self, scale: Values, zero: Values | None, scheme: Scheme) -> Values:
        """Weighted squared error of each group."""
        errors = self.steps(scale, zero, scheme).mul_(scale.unsqueeze(-1)).sub_(self.values).square_()
        if self.importance is not None:
            errors.mul_(self.importance)
        return errors.sum(-1).sum_to_size(scale.shape)

    def moments(self, scale: Values, zero: Values | None, scheme: Scheme) -> tuple[Values, Values]:
        """Numerator and denominator of the least-squares scale for the steps of this grid."""
        steps = self.steps(scale, zero, scheme)
        weighted = steps if self.importance is None else steps * self.importance
        along = (weighted * self.values).sum(-1).sum_to_size(scale.shape)
        return along, (weighted * steps).sum(-1).sum_to_size(scale.shape)


@dataclass(slots=True)
class _Best:
    """The best grid of each group so far; a tie keeps the earlier one."""

    scale: Values
    zero: Values | None
    error: Values

    def offer(self, scale: Values, zero: Values | None, error: Values) -> None:
        better = error < self.error
        self.scale = torch.where(better, scale, self.scale)
        self.error = torch.where(better, error, self.error)
        if zero is not None and self.zero is not None:
            self.zero = torch.where(better, zero, self.zero)


def search_scales(
    pieces: Sequence[Piece],
    scale: Values,
    zero: Values | None,
    low: Values,
    high: Values,
    scheme: Scheme,
    dtype: torch.dtype,
) -> tuple[Values, Values | None]:
    """Search around a grid that covers the range: scales and zeros whose error is nowhere above that grid's.

    Args:
        pieces: the rows that share these scales.
        scale: of the covering grid, as stored.
        zero: its zeros, or None for symmetric schemes.
        low: smallest value of each group, at most 0.
        high: largest value of each group, at least 0.
        scheme: code range.
        dtype: in which the scales will be stored.
    """

    def error(scale: Values, zero: Values | None) -> Values:
        return torch.stack([piece.error(scale, zero, scheme) for piece in pieces]).sum(0)

    best = _Best(scale, zero, error(scale, zero))
    for candidate, candidate_zero in _ladder(scale, low, high, scheme, dtype):
        best.offer(candidate, candidate_zero, error(candidate, candidate_zero))
    for _ in range(REFITS):
        _refit(best, pieces, error, scheme, dtype)
    return best.scale, best.zero


def _ladder(
    scale: Values, low: Values, high: Values, scheme: Scheme, dtype: torch.dtype
) -> Iterable[tuple[Values, Values | None]]:
    """Candidate grids around `scale`."""
    for factor in FACTORS:
        narrow = as_stored(scale * factor, dtype)
        if scheme.symmetric:
            yield narrow, None
            yield -narrow, None
            continue
        # Clip both ends alike, the high end only, the low end only.
        for zero in (
            scheme.code_min - low / scale,
            scheme.code_min - low / narrow,
            scheme.code_max - high / narrow,
        ):
            yield narrow, zero.round_().clamp_(scheme.code_min, scheme.code_max)


def _refit(
    best: _Best,
    pieces: Sequence[Piece],
    error: Callable[[Values, Values | None], Values],
    scheme: Scheme,
    dtype: torch.dtype,
) -> None:
    """Offer the least-squares scale for the best codes, then the neighbouring zeros."""
    moments = [piece.moments(best.scale, best.zero, scheme) for piece in pieces]
    along = torch.stack([moment[0] for moment in moments]).sum(0)
    square = torch.stack([moment[1] for moment in moments]).sum(0)
    fitted = as_stored(torch.where(square > 0, along / square, best.scale), dtype)
    best.offer(fitted, best.zero, error(fitted, best.zero))
    if best.zero is None:
        return
    for shift in (-1, 1):
        zero = (best.zero + shift).clamp(scheme.code_min, scheme.code_max)
        best.offer(best.scale, zero, error(best.scale, zero))
