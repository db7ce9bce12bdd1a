"""`x @ weight.T + bias` with a weight of packed 2, 3, 4 or 8-bit integers: the ops `llmquant::linear_int2` to `_int8`.

    linear_int4(Tensor x, Tensor packed, Tensor scale, Tensor? zero=None, Tensor? bias=None) -> Tensor

`x` is (..., in_features), the result (..., out_features) in the dtype of `x`; the weight's tensors are those of a
compressed-tensors file, described in dequantize.py.

The definition is the reference below: dequantize in the dtype of the scales, cast to that of `x`, then
`torch.nn.functional.linear`. It gives the bits of the dense layer, and needs the memory of one dense weight while it
runs. Fast kernels register themselves for a device over it and keep their own tolerance against it.

The gradient reaches `x` and `bias`; the weight is frozen. The backward pass unpacks the weight again instead of keeping
the dense one.

The ops are made with torch.library.Library and not custom_op, which costs several times as much per call.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llmquant.kernels.cpu import native
from llmquant.kernels.ops.dequantize import check_weight, dequantize
from llmquant.spec import BITS

_library = torch.library.Library("llmquant", "FRAGMENT")
_ARGUMENTS = "(Tensor x, Tensor packed, Tensor scale, Tensor? zero=None, Tensor? bias=None) -> Tensor"


def linear_reference(
    bits: int, x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """What the ops mean; see the module docstring."""
    _check_bias(x, packed, bias)
    return functional.linear(x, dequantize(packed, scale, zero, bits, x.shape[-1], x.dtype), bias)


def kernel_name(bits: int, device: torch.device | str) -> str:
    """What runs the op on a device, such as "linear_int4: reference, avx2 unpack"."""
    unpack = native.isa() if torch.device(device).type == "cpu" else "torch"
    return f"linear_int{bits}: reference, {unpack} unpack"


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
    check_weight(packed, scale, zero, bits, x.shape[-1])
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:  # noqa: ARG001 - torch passes it by name
    x, packed, scale, zero, bias = inputs
    if ctx.needs_input_grad[2]:
        raise RuntimeError(
            "the scale of a packed weight asks for a gradient, but packed weights are frozen; "
            "call scale.requires_grad_(False), or train before packing"
        )
    ctx.save_for_backward(packed, scale, zero)
    ctx.in_features, ctx.dtype, ctx.has_bias = x.shape[-1], x.dtype, bias is not None


def _backward(bits: int, ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, Tensor | None]:
    packed, scale, zero = ctx.saved_tensors
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        # Through the op, not the function: a compiled backward traces it.
        weight = torch.ops.llmquant.dequantize_int.default(packed, scale, zero, bits, ctx.in_features, ctx.dtype)
        grad_x = grad @ weight
    # needs_input_grad ends where the caller's arguments do.
    if ctx.has_bias and ctx.needs_input_grad[4]:
        grad_bias = grad.flatten(0, -2).sum(0) if grad.ndim > 1 else grad
    return grad_x, None, None, None, grad_bias


def _register(bits: int) -> None:
    name = f"linear_int{bits}"
    _library.define(name + _ARGUMENTS, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, partial(linear_reference, bits), "CompositeExplicitAutograd")
    torch.library.register_fake(f"llmquant::{name}", partial(_fake, bits), lib=_library)
    torch.library.register_autograd(
        f"llmquant::{name}", partial(_backward, bits), setup_context=_setup_context, lib=_library
    )


for _bits in BITS:
    _register(_bits)

#: The op of each width, as `torch.ops.llmquant.linear_int<bits>.default`.
OPS: dict[int, Any] = {bits: getattr(torch.ops.llmquant, f"linear_int{bits}").default for bits in BITS}
