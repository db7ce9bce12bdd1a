"""Choose scales and zero points for a weight, and round the weight to them.

Symmetric grids use the full signed range: the element of largest magnitude of a group lands exactly on the extra
negative code, so its scale is negative when that element is positive. This wastes none of the 2^bits codes, which
2 and 3 bits can least afford. Asymmetric grids span [min(w, 0), max(w, 0)] with an integer zero point.

A scale is cast to the dtype in which it is stored BEFORE any weight is divided by it, so the codes belong to the
scale that a reader of the file sees. Work is done in float32, by chunks of rows that stay in the cache.

Legend: O out_features, I in_features, G groups a row, g = I / G inputs a group, R rows of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from llmquant.errors import QuantizationError
from llmquant.numerics.checks import require_finite
from llmquant.numerics.grid_search import Piece, Values, search_scales
from llmquant.numerics.stored_scale import SCALE_DTYPES, as_stored
from llmquant.numerics.threads import map_chunks, row_chunks
from llmquant.spec import Scheme

Objective = Literal["absmax", "mse"]


@dataclass(frozen=True, slots=True)
class Grid:
    """The values that a weight may take: `scales * (code - zeros)`.

    Attributes:
        scales: a row for each output, or (1, 1) for one scale per tensor; in the dtype in which they are stored. They
            may be negative in a symmetric scheme, and are never 0.
        zeros: in [code_min, code_max]; None for symmetric schemes.
        zero_groups: how many groups hold only zeros; they get scale 1, zero 0 and codes 0.
    """

    scales: Float[Tensor, "rows groups"]
    zeros: Int8[Tensor, "rows groups"] | None
    zero_groups: int = 0


def choose_grid(
    weight: Float[Tensor, "out in"],
    scheme: Scheme,
    *,
    scale_dtype: torch.dtype,
    objective: str = "absmax",
    importance: Float[Tensor, " in"] | None = None,
) -> Grid:
    """Choose scales (and zeros) for `weight`.

    Args:
        weight: read only.
        scheme: bits, granularity and symmetry; groups run along in_features.
        scale_dtype: float32, float16 or bfloat16, the dtype in which the scales will be stored.
        objective: "absmax" covers the whole range of each group; "mse" searches around that for the least (weighted)
            squared error of round to nearest, and is never worse than "absmax" by that measure.
        importance: weights >= 0 of the squared errors of "mse", such as the diagonal of the Hessian;
            None weighs all inputs alike.

    Returns:
        The grid. Its scales are at least `stored_scale.SMALLEST_SCALE[scale_dtype]` in magnitude.

    Raises:
        QuantizationError: if the weight is not finite, the groups do not divide in_features, or the weight is too
            large for scales of this dtype.
        ValueError: if the scheme keeps the tensor, or an argument is not one of those above.
    """
    _require_arguments(weight, scheme, scale_dtype, objective, importance)
    require_finite(weight, "the weight")
    shape = scheme.scale_shape(*weight.shape)
    scales = torch.empty(shape, dtype=scale_dtype, device=weight.device)
    zeros = None if scheme.symmetric else torch.empty(shape, dtype=torch.int8, device=weight.device)
    scaled_importance = None if importance is None else _normalised(importance, shape[1])

    def fill(ranges: list[tuple[int, int]]) -> int:
        rows, pieces = _pieces(weight, scheme, scaled_importance, ranges)
        low, high = _extremes(pieces, scales[rows].shape)
        scale, zero = _range_grid(low, high, scheme, scale_dtype)
        if objective == "mse":
            scale, zero = search_scales(pieces, scale, zero, low, high, scheme, scale_dtype)
        empty = low == high
        scale = torch.where(empty, 1.0, scale)
        scales[rows] = scale.to(scale_dtype)
        if zeros is not None and zero is not None:
            zeros[rows] = torch.where(empty, 0.0, zero).to(torch.int8)
        return int(empty.sum())

    chunks = row_chunks(weight.shape[0], weight.shape[1], weight.device)
    # One scale for all rows is chosen from all of them.
    parts = [chunks] if scheme.granularity == "tensor" else [[chunk] for chunk in chunks]
    grid = Grid(scales, zeros, sum(map_chunks(fill, parts, weight.device)))
    _require_in_range(grid, scheme)
    return grid


def round_to_grid(weight: Float[Tensor, "out in"], grid: Grid, scheme: Scheme) -> Int8[Tensor, "out in"]:
    """Round each element to the nearest value of the grid, ties to even multiples of the scale.

    Codes are clamped to [code_min, code_max].
    """
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    groups = grid.scales.shape[1]

    def fill(chunk: tuple[int, int]) -> None:
        begin, end = chunk
        rows = slice(begin, end) if grid.scales.shape[0] > 1 else slice(0, 1)
        steps = weight[begin:end].reshape(end - begin, groups, -1).float() / grid.scales[rows].float().unsqueeze(-1)
        steps.round_()
        if grid.zeros is not None:
            steps.add_(grid.zeros[rows].float().unsqueeze(-1))
        codes[begin:end] = steps.clamp_(scheme.code_min, scheme.code_max).view(end - begin, -1)

    map_chunks(fill, row_chunks(weight.shape[0], weight.shape[1], weight.device), weight.device)
    return codes


def _require_arguments(
    weight: Tensor, scheme: Scheme, scale_dtype: torch.dtype, objective: str, importance: Tensor | None
) -> None:
    if scheme.is_keep:
        raise ValueError("the scheme 'keep' has no grid")
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"expected a weight (out_features, in_features), got shape {list(weight.shape)}")
    if scale_dtype not in SCALE_DTYPES:
        raise ValueError(f"scales are float32, float16 or bfloat16, not {scale_dtype}")
    if objective not in get_args(Objective):
        raise ValueError(f"objective is one of {', '.join(get_args(Objective))}, not {objective!r}")
    if not scheme.divides(weight.shape[1]):
        raise QuantizationError(
            f"groups of {scheme.group_size} do not divide in_features = {weight.shape[1]}; "
            "choose a group size that does, or one scale per channel"
        )
    if importance is None:
        return
    if importance.shape != weight.shape[1:]:
        raise ValueError(f"importance has shape {list(importance.shape)}, not in_features = {weight.shape[1]}")
    require_finite(importance, "the importance")
    if bool((importance < 0).any()):
        raise ValueError("importance must not be negative")


def _normalised(importance: Float[Tensor, " in"], groups: int) -> Float32[Tensor, "1 {groups} g"]:
    """With maximum 1, so that sums neither overflow nor vanish."""
    largest = importance.max()
    scaled = importance / torch.where(largest > 0, largest, 1.0)
    return scaled.float().view(1, groups, -1)


def _pieces(
    weight: Float[Tensor, "out in"],
    scheme: Scheme,
    importance: Float32[Tensor, "1 groups g"] | None,
    ranges: list[tuple[int, int]],
) -> tuple[slice, list[Piece]]:
    """Rows of the scales that belong to these rows of the weight, and the weight there."""
    groups = scheme.scale_shape(*weight.shape)[1]
    # Many ranges share one scale: their float32 copies would not be small, so `Piece` makes them one at a time.
    dtype = torch.float32 if len(ranges) == 1 else weight.dtype
    pieces = [Piece(weight[b:e].contiguous().view(e - b, groups, -1).to(dtype), importance) for b, e in ranges]
    return slice(0, 1) if scheme.granularity == "tensor" else slice(*ranges[0]), pieces


def _extremes(pieces: list[Piece], shape: torch.Size) -> tuple[Values, Values]:
    """The smallest and the largest of 0 and the values of each group, of shape `shape`."""
    # Two passes: torch.aminmax over a dimension is several times slower than amin and amax together.
    low = torch.cat([piece.values.amin(-1) for piece in pieces]).float().clamp(max=0)
    high = torch.cat([piece.values.amax(-1) for piece in pieces]).float().clamp(min=0)
    if low.shape != shape:
        return low.amin(0, keepdim=True), high.amax(0, keepdim=True)
    return low, high


def _range_grid(low: Values, high: Values, scheme: Scheme, dtype: torch.dtype) -> tuple[Values, Values | None]:
    """The grid that covers [low, high]: scales as stored but in float32, and zeros in float32."""
    if scheme.symmetric:
        # On a tie the negative element decides, which keeps the scale positive.
        return as_stored(torch.where(high > -low, high, low) / scheme.code_min, dtype), None
    # The width of the range may exceed float32 where its ends do not.
    width = high.double() - low.double()
    scale = as_stored((width / (scheme.code_max - scheme.code_min)).float(), dtype)
    zero = (scheme.code_min - (low / scale).round()).clamp(scheme.code_min, scheme.code_max)
    return scale, zero


def _require_in_range(grid: Grid, scheme: Scheme) -> None:
    """Refuse a grid with values that its own dtype cannot hold."""
    reach = float(-scheme.code_min)
    if grid.zeros is not None:
        zero = grid.zeros.float()
        reach = torch.maximum(scheme.code_max - zero, zero - scheme.code_min)
    extreme = grid.scales.float().abs() * reach
    largest = torch.finfo(grid.scales.dtype).max
    # `not <=` so that an infinite scale is caught as well.
    bad = int((~(extreme <= largest)).sum())
    if bad:
        raise QuantizationError(
            f"{bad} of {extreme.numel()} groups reach {extreme.max().item():.4g}, more than {grid.scales.dtype} holds "
            f"({largest:.4g}); store the scales as bfloat16 or float32, or keep this tensor in 16 bit"
        )
