"""Rounding that lets gradients through, for weights that are trained as they will be read.

The values are those of the stored tensors, bit for bit; the gradient is that of the same computation without rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from llmquant.numerics.stored_scale import as_stored


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, _value: Tensor, rounded: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return rounded.clone()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, None


def straight_through(value: Float[Tensor, "*shape"], rounded: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The values of `rounded` with the gradient of `value`."""
    return _StraightThrough.apply(value, rounded)  # pyright: ignore[reportReturnType]


def stored_scales(scales: Float32[Tensor, "*shape"], dtype: torch.dtype) -> Float32[Tensor, "*shape"]:
    """Scales as they are stored in `dtype`, in float32."""
    return straight_through(scales, as_stored(scales.detach(), dtype))


def dequantize(
    codes: Int8[Tensor, "out in"],
    scales: Float32[Tensor, "rows groups"],
    zeros: Int8[Tensor, "rows groups"] | None,
    dtype: torch.dtype,
) -> Float32[Tensor, "out in"]:
    """The weight of these codes, as `QuantizedTensor.dequantize` gives it.

    Scales, one row for each output or one for all, are such as `stored_scales` gives them, and get the gradient.
    `dtype` is that of the stored scales, in which readers compute.
    """
    rows, columns = codes.shape
    grouped = codes.view(rows, scales.shape[1], -1).float()
    steps = grouped if zeros is None else grouped - zeros.float().unsqueeze(-1)
    weight = (steps * scales.unsqueeze(-1)).view(rows, columns)
    return straight_through(weight, weight.detach().to(dtype).float())
