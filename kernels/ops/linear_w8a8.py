"""`x @ weight.T + bias` with 8-bit weights and 8-bit activations (W8A8): the op `llmquant::linear_w8a8`.

    linear_w8a8(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None, Tensor? input_scale=None) -> Tensor

`x` is (..., in_features), the result (..., out_features) in the dtype of `x`; `weight` (out_features, in_features) int8
and `scale` (out_features, 1) are those of a compressed-tensors file, and so is `input_scale` (1,), if it has one.

The definition is the reference below: `quantize_tokens`, a product of integers that is exact, then both scales at once.
Scales and codes of `x` are those of compressed-tensors 0.20 (its forward then multiplies in the dtype of `x`, and so
rounds more), with two exceptions: every row has its own scale also where `x` has no batch dimension, for which
compressed-tensors takes one scale for all rows; and a row with NaN or infinity is NaN, also with a given scale.

The gradient reaches `x`, as if it had not been quantized, and `bias` (frozen.py).
kernels/cpu/ops.py has the same for prepared weights, as the op `llmquant::cpu_linear_w8a8`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.ops.frozen import define, register_gradient

_EXACT = 1024  # products of two int8 that a float32 adds up without rounding: 2^24 / 2^14


def quantize_tokens(x: Tensor, input_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantize rows to symmetric codes of 8 bits.

    Args:
        x: (..., in_features) float.
        input_scale: (1,) the scale of all rows; None if each has its own: its largest magnitude over 127.5.

    Returns:
        codes (..., in_features) in [-128, 127], whole numbers in float32 (or float64, as `x`), and scales (..., 1) in
        the same; zeros and NaN for rows that are not finite, and for scales that are not positive.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if input_scale is None:
        most = x.abs().amax(-1, keepdim=True)
        scales = most / x.new_full((), 127.5)  # by a tensor: CUDA multiplies by the inverse of a number
        scales = scales.masked_fill(scales == 0, torch.finfo(x.dtype).eps).to(dtype)
    else:
        scales = input_scale.to(dtype).reshape(1).expand(*x.shape[:-1], 1)
    good = x.isfinite().all(-1, keepdim=True) & scales.isfinite() & (scales > 0)
    codes = (x.to(dtype) / scales).to(x.dtype).clamp(-128, 127).round().to(dtype)
    return codes.where(good, 0), scales.where(good, torch.nan)


def linear_reference(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, input_scale: Tensor | None = None
) -> Tensor:
    """What the op means; see the module docstring."""
    check(x, weight, scale, bias, input_scale)
    codes, steps = quantize_tokens(x, input_scale)
    total = torch.zeros((*x.shape[:-1], weight.shape[0]), dtype=torch.int32, device=x.device)
    with torch.autocast(x.device.type, enabled=False):  # which would round the sums
        for first in range(0, x.shape[-1], _EXACT):
            columns = slice(first, first + _EXACT)
            total += (codes[..., columns].float() @ weight[:, columns].float().T).to(torch.int32)
    result = total.to(steps.dtype) * steps * scale[:, 0].to(steps.dtype)
    return (result if bias is None else result + bias.to(steps.dtype)).to(x.dtype)


def check(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor | None) -> None:
    torch._check(
        x.is_floating_point() and x.ndim > 0 and weight.dtype == torch.int8 and weight.ndim == 2,
        lambda: (
            f"x is a float [..., in_features] and the weight int8 [out_features, in_features], got {x.dtype} "
            f"{list(x.shape)} and {weight.dtype} {list(weight.shape)}"
        ),
    )
    rows, cols = weight.shape
    torch._check(
        x.shape[-1] == cols
        and scale.is_floating_point()
        and tuple(scale.shape) == (rows, 1)
        and (bias is None or (bias.dtype == x.dtype and tuple(bias.shape) == (rows,)))
        and (input_scale is None or input_scale.numel() == 1),
        lambda: (
            f"with a weight of {list(weight.shape)}, x is [..., {cols}], scale float [{rows}, 1], bias none or "
            f"[{rows}] of {x.dtype}, and input_scale none or [1]; got x {list(x.shape)}, scale {scale.dtype} "
            f"{list(scale.shape)}, bias {bias if bias is None else (bias.dtype, list(bias.shape))}, "
            f"input_scale {input_scale}"
        ),
    )


def _fake(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, input_scale: Tensor | None = None
) -> Tensor:
    check(x, weight, scale, bias, input_scale)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _dense(saved: Sequence[Tensor], _: Any, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:  # noqa: ARG001
    weight, scale = saved
    return (weight.to(scale.dtype) * scale).to(dtype)


_library = torch.library.Library("llmquant", "FRAGMENT")

OP = define(
    _library,
    "linear_w8a8(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None, Tensor? input_scale=None) -> Tensor",
    linear_reference,
    _fake,
)
register_gradient("linear_w8a8", _dense, weight=slice(1, 3), bias=3, library=_library)
