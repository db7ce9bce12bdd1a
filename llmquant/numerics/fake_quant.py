"""Rounding that lets gradients through, for weights that are trained as they will be read.

The values are those of the stored tensors, bit for bit; the gradient is that of the same computation without rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmquant.numerics.stored_scale import as_stored


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, _value: Tensor, rounded: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return rounded.clone()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, None


def straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """The values of `rounded` with the gradient of `value`, both of any shape."""
    return _StraightThrough.apply(value, rounded)  # pyright: ignore[reportReturnType]


def stored_scales(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales (float32) as they are stored in `dtype`, in float32."""
    return straight_through(scales, as_stored(scales.detach(), dtype))


def dequantize(codes: Tensor, scales: Tensor, zeros: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight of these codes, as `QuantizedTensor.dequantize` gives it.

    Args:
        codes: (out_features, in_features) int8.
        scales: (out_features, groups) or (1, 1) float32, such as `stored_scales` gives them; gets the gradient.
        zeros: like scales but int8, or None.
        dtype: of the stored scales, in which readers compute.

    Returns:
        (out_features, in_features) float32.
    """
    rows, columns = codes.shape
    grouped = codes.view(rows, scales.shape[1], -1).float()
    steps = grouped if zeros is None else grouped - zeros.float().unsqueeze(-1)
    weight = (steps * scales.unsqueeze(-1)).view(rows, columns)
    return straight_through(weight, weight.detach().to(dtype).float())
