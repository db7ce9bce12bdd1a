"""GPTQ in LDLQ form: round input by input, letting each input make up for the errors of those rounded before it.

Frantar et al. 2023 (arXiv:2210.17323) minimise tr((Q - W) H (Q - W)^T) greedily; Chee et al. 2023 (arXiv:2307.13304,
theorem 6) show that the same result needs only H = L D L^T instead of the factor of an inverse:

    q_j = round(w_j + sum_{k rounded before j} (w_k - q_k) L_kj)

with L unit lower triangular in the reversed order of rounding. Here the buffer that starts as the permuted W turns
into the errors E = W - Q row by row, so besides the weight and the Hessian the work takes one matrix for L, one for E
and the codes. A block of 128 inputs is one call of a kernel; what earlier blocks contribute is one GEMM per block.
What rounding misses of its target, the term in brackets minus q_j, is column j of E L, so the loss E H E^T comes with
it.

Grids are fixed beforehand from the original weight, whatever the order, and errors are those of the value that a
reader dequantizes in the dtype of the scales.

Legend: O out_features, I in_features, G groups a row; E, W and codes are transposed (I, O) here, so that an input is
contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int8, Int64
from torch import Tensor

from llmquant.algorithms.rounding.base import LayerResult
from llmquant.algorithms.rounding.shared.ldl import Factor, factorise
from llmquant.algorithms.rounding.shared.loss import relative_loss
from llmquant.errors import QuantizationError, RecipeError
from llmquant.kernels.ops.round_block import Columns
from llmquant.kernels.rounding import round_block
from llmquant.numerics.checks import require_finite
from llmquant.numerics.grid import Grid, choose_grid
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme
from llmquant.statistics.base import LayerStatistics

NEEDS: frozenset[str] = frozenset({"hessian"})
BLOCK = 128
GridObjective = Literal["absmax", "mse", "diag"]
Order = Literal["static", "group", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of GPTQ.

    Attributes:
        damp: what is added to the diagonal of the Hessian first, as a share of its mean; raised as far as needed.
        order: which input is rounded first: "static" the most important, "group" the most important group and in it
            the most important input, "none" the first in memory.
        grid: how the scales are chosen: "absmax" from the range, "mse" by the error of the weights, "diag" by that
            error weighted with the diagonal of the Hessian.
    """

    damp: float = 0.01
    order: Order = "static"
    grid: GridObjective = "diag"

    def __post_init__(self) -> None:
        if not 0 <= self.damp <= 1:
            raise RecipeError(f"gptq: damp is a share of the mean diagonal in 0 to 1, not {self.damp}")


@torch.no_grad()
def quantize(
    weight: Float[Tensor, "out in"],
    statistics: LayerStatistics,
    scheme: Scheme,
    options: Options,
    *,
    scale_dtype: torch.dtype,
) -> LayerResult:
    """Round one weight with GPTQ; see `base.Algorithm.quantize`.

    Inputs that calibration never saw differ from 0 are dead, counted as "dead_columns". Their weights are rounded to
    nearest, which costs nothing here and serves the texts where they are not 0; but they have no say in the grid of a
    group that holds live inputs.
    "damping_raised" counts how often the damping was raised before the Hessian could be factorised.
    The loss is measured with the Hessian as given, without damping.
    """
    hessian = _require_hessian(statistics, weight.shape[1])
    require_finite(weight, "the weight")
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    grid = choose_grid(
        _without_dead(weight, dead, scheme),
        scheme,
        scale_dtype=scale_dtype,
        objective="absmax" if options.grid == "absmax" else "mse",
        importance=diagonal if options.grid == "diag" else None,
    )
    # L D L^T runs from the last row to the first.
    order = processing_order(diagonal, grid.scales.shape[1], options.order).flip(0)
    factor = factorise(hessian, order, dead, options.damp)
    codes, lost = _round_in_order(weight, factor, order, _columns(grid, scheme, weight.shape[0]))
    quantized = QuantizedTensor(codes, grid.scales, grid.zeros)
    counters = {"zero_groups": grid.zero_groups, "dead_columns": int(dead.sum()), "damping_raised": factor.raised}
    del factor
    loss = relative_loss(weight, quantized, hessian, lost)
    return LayerResult(quantized, loss, {key: count for key, count in counters.items() if count})


def processing_order(importance: Float[Tensor, " in"], groups: int, order: Order) -> Int64[Tensor, " in"]:
    """Which input is rounded first, second, and so on; ties keep the order in memory.

    Grids belong to the original groups whatever the order ("static groups"), so no order leaves a trace in the file.

    Args:
        importance: diagonal of the Hessian.
        groups: groups in a row.
        order: "static" sorts all inputs, the most important first: their errors are spread over the most others.
            "group" keeps groups together: it sorts the groups by their largest importance, and the inputs inside each
            (group-aware reordering, arXiv:2505.14638). "none" is the order in memory.
    """
    if order == "none":
        return torch.arange(len(importance), device=importance.device)
    if order == "static":
        return torch.sort(importance, descending=True, stable=True).indices
    grouped = importance.view(groups, -1)
    within = torch.sort(grouped, dim=1, descending=True, stable=True).indices
    between = torch.sort(grouped.amax(1), descending=True, stable=True).indices
    starts = torch.arange(groups, device=importance.device).unsqueeze(1) * grouped.shape[1]
    return (within + starts)[between].flatten()


def _require_hessian(statistics: LayerStatistics, in_features: int) -> Float32[Tensor, "{in_features} {in_features}"]:
    """The Hessian, if calibration made one that can be used."""
    hessian = statistics.get("hessian")
    if hessian is None or statistics.tokens == 0:
        missing = "there is none" if hessian is None else "no token was seen"
        raise QuantizationError(
            f"gptq needs a Hessian from calibration, but {missing}; "
            "calibrate with text that reaches this layer, or round it with rtn"
        )
    if hessian.shape != (in_features, in_features):
        raise QuantizationError(f"the Hessian has shape {list(hessian.shape)}, but in_features = {in_features}")
    require_finite(hessian, "the Hessian")
    lowest, highest = torch.aminmax(hessian.diagonal())
    if lowest < 0 or highest == 0:
        raise QuantizationError(
            f"the diagonal of the Hessian lies in [{lowest.item():.4g}, {highest.item():.4g}]; it holds mean squares, "
            "so none may be negative and not all may be 0: calibrate with text that reaches this layer"
        )
    return hessian


def _without_dead(
    weight: Float[Tensor, "out in"], dead: Bool[Tensor, " in"], scheme: Scheme
) -> Float[Tensor, "out in"]:
    """The weight with zeros for dead inputs, except in groups where all inputs are dead."""
    if not bool(dead.any()) or not scheme.divides(weight.shape[1]):  # `choose_grid` refuses the latter
        return weight
    groups = scheme.scale_shape(*weight.shape)[1]
    beside_live = dead.view(groups, -1) & ~dead.view(groups, -1).all(1, keepdim=True)
    return weight.masked_fill(beside_live.view(-1), 0)


def _round_in_order(
    weight: Float[Tensor, "out in"], factor: Factor, order: Int64[Tensor, " in"], columns: Columns
) -> tuple[Int8[Tensor, "out in"], float | None]:
    """Codes of the weight, rounded from the last entry of `order` to the first, and `Factor.loss` of their errors."""
    in_features = weight.shape[1]
    errors = weight.float().t().contiguous()[order]
    codes = torch.empty_like(errors, dtype=torch.int8)
    groups = order // (in_features // columns.scales.shape[0])
    missed = torch.empty(in_features, dtype=torch.float64, device=weight.device)
    for end in range(in_features, 0, -BLOCK):
        block = slice(max(0, end - BLOCK), end)
        # What is already rounded pushes on this block.
        targets = torch.addmm(errors[block], factor.lower[end:, block].t(), errors[end:])
        inner = factor.lower[block, block].t().contiguous()
        round_block(targets, errors[block], inner, groups[block], columns, codes[block])
        missed[block] = _squares(targets)
    restored = torch.empty_like(codes)
    restored[order] = codes
    return restored.t().contiguous(), factor.loss(missed, _squares(errors))


def _columns(grid: Grid, scheme: Scheme, out_features: int) -> Columns:
    scales, zeros = (
        None if values is None else values.float().t().expand(-1, out_features).contiguous()
        for values in (grid.scales, grid.zeros)
    )
    assert scales is not None
    return Columns(scales, zeros, scheme.code_min, scheme.code_max, grid.scales.dtype)


def _squares(rows: Float32[Tensor, "in out"]) -> Float64[Tensor, " in"]:
    return rows.square().sum(1).double()
