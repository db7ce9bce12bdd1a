"""Non-finite values are named with their count and place."""

from __future__ import annotations

import pytest
import torch

from llmquant.errors import QuantizationError
from llmquant.numerics.checks import require_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_refuses_and_says_where(dtype: torch.dtype, value: float) -> None:
    tensor = torch.zeros(3, 5, dtype=dtype)
    tensor[1, 4] = value
    tensor[2, 0] = value
    with pytest.raises(
        QuantizationError, match=r"^blocks\.0\.weight holds 2 values .* out of 15, the first at \[1, 4\]"
    ):
        require_finite(tensor, "blocks.0.weight")


def test_accepts_extremes_and_empty() -> None:
    require_finite(torch.tensor([torch.finfo(torch.float32).max, torch.finfo(torch.float32).min]), "x")
    require_finite(torch.empty(0, 4), "x")
