"""Round to nearest: the grid it says, and the loss without a Hessian."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from llmquant.algorithms.rounding import rtn
from llmquant.numerics.grid import choose_grid, round_to_grid
from llmquant.spec import Scheme
from llmquant.statistics.base import LayerStatistics


@pytest.mark.parametrize("name", ["int3-g32", "int4-g32-asym", "int8"])
@pytest.mark.parametrize("objective", ["absmax", "mse"])
def test_rounds_to_the_chosen_grid(weight: Tensor, name: str, objective: Literal["absmax", "mse"]) -> None:
    scheme = Scheme.parse(name)
    result = rtn.quantize(
        weight,
        LayerStatistics(),
        scheme,
        rtn.Options(grid=objective),
        scale_dtype=torch.float16,
    )
    grid = choose_grid(weight, scheme, scale_dtype=torch.float16, objective=objective)
    assert torch.equal(result.quantized.scales, grid.scales)
    assert torch.equal(result.quantized.codes, round_to_grid(weight, grid, scheme))
    error = result.quantized.dequantize().double() - weight.double()
    assert result.loss == pytest.approx((error.square().sum() / weight.double().square().sum()).item(), rel=1e-5)
