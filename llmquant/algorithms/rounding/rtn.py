"""Round to nearest: each weight goes to the nearest value of its group's grid, on its own.

Needs no calibration. A Hessian that is given anyway only measures the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from llmquant.algorithms.rounding.base import LayerResult
from llmquant.algorithms.rounding.shared.loss import relative_loss
from llmquant.numerics.grid import choose_grid, round_to_grid
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme
from llmquant.statistics.base import LayerStatistics

NEEDS: frozenset[str] = frozenset()
GridObjective = Literal["absmax", "mse"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of round to nearest.

    Attributes:
        grid: "absmax" covers the range of each group; "mse" searches the scales of least squared error.
    """

    grid: GridObjective = "absmax"


@torch.no_grad()
def quantize(
    weight: Float[Tensor, "out in"],
    statistics: LayerStatistics,
    scheme: Scheme,
    options: Options,
    *,
    scale_dtype: torch.dtype,
) -> LayerResult:
    """Round one weight to nearest; see `base.Algorithm.quantize`."""
    grid = choose_grid(weight, scheme, scale_dtype=scale_dtype, objective=options.grid)
    quantized = QuantizedTensor(round_to_grid(weight, grid, scheme), grid.scales, grid.zeros)
    counters = {"zero_groups": grid.zero_groups} if grid.zero_groups else {}
    return LayerResult(quantized, relative_loss(weight, quantized, statistics.get("hessian")), counters)
