"""`x @ weight.T + bias` with a weight of packed 2, 3, 4 or 8-bit integers: the ops `llmquant::linear_int2` to `_int8`.

    linear_int4(Tensor x, Tensor packed, Tensor scale, Tensor? zero=None, Tensor? bias=None) -> Tensor

`x` is (..., in_features), the result (..., out_features) in the dtype of `x`; the weight is a
`PackedWeight` with the bits of the op.

The definition is the reference below: dequantize in the dtype of the scales, cast to that of `x`, then
`torch.nn.functional.linear`. It gives the bits of the dense layer, and needs the memory of one dense weight while it
runs. Fast kernels register themselves for a device over it and keep their own tolerance against it.

The gradient reaches `x` and `bias` (frozen.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llmquant.kernels.ops.dequantize import dequantize, dequantize_reference
from llmquant.kernels.ops.frozen import define, register_gradient
from llmquant.kernels.product import PackedWeight
from llmquant.spec import BITS


def linear_by(
    dense: Callable[..., Tensor],
    bits: int,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """What the ops run where `dense` dequantizes; see the module docstring."""
    _check_bias(x, packed, bias)
    return functional.linear(x, dense(packed, scale, zero, bits, x.shape[-1], x.dtype), bias)


#: What the ops mean, given the bits.
linear_reference = partial(linear_by, dequantize_reference)


def _check_bias(x: Tensor, packed: Tensor, bias: Tensor | None) -> None:
    torch._check(x.is_floating_point() and x.ndim > 0, lambda: f"x is a float [..., in_features], got {x.dtype}")
    torch._check(
        bias is None or (tuple(bias.shape) == (packed.shape[0],) and bias.dtype == x.dtype),
        lambda: f"the bias is {x.dtype} [{packed.shape[0]}], like x and the outputs; got {bias}",
    )


def _fake(
    bits: int, x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    _check_bias(x, packed, bias)
    PackedWeight(packed, scale, zero, bits, x.shape[-1]).check()
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


def _register(bits: int) -> Any:
    name = f"linear_int{bits}"
    arguments = "(Tensor x, Tensor packed, Tensor scale, Tensor? zero=None, Tensor? bias=None) -> Tensor"
    op = define(_library, name + arguments, partial(linear_reference, bits), partial(_fake, bits))

    def dense(saved: Sequence[Tensor], _: Any, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        return dequantize(*saved, bits, shape[1], dtype)

    register_gradient(name, dense, weight=slice(1, 4), bias=4, library=_library)
    return op


_library = torch.library.Library("llmquant", "FRAGMENT")

#: The op of each width, as `torch.ops.llmquant.linear_int<bits>.default`.
OPS: dict[int, Any] = {bits: _register(bits) for bits in BITS}
