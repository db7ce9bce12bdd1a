"""The gradient of a product by a frozen weight, written once for all ops: to x and to the bias.

The backward pass makes the dense weight again instead of keeping it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: From the saved tensors, all arguments of the op (None for tensors), (out_features, in_features) and a dtype to the
#: dense weight. It calls ops, not functions: a compiled backward traces it.
Dense = Callable[[Sequence[Tensor], Sequence[Any], tuple[int, int], torch.dtype], Tensor]


def register_gradient(
    name: str, dense: Dense, *, bias: int, weight: slice = slice(1, 2), library: torch.library.Library
) -> None:
    """Give an op its gradient: its first argument is x (..., in_features), `bias` and `weight` say which those are."""

    def set_up(ctx: Any, inputs: tuple, output: Tensor) -> None:  # noqa: ARG001 - torch passes it by name
        if any(ctx.needs_input_grad[weight]):
            raise RuntimeError(
                "a tensor of a packed weight, such as its scale, asks for a gradient, but packed weights are frozen; "
                "call scale.requires_grad_(False), or train before packing"
            )
        ctx.save_for_backward(*inputs[weight])
        ctx.asked = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.in_features, ctx.dtype, ctx.has_bias = inputs[0].shape[-1], inputs[0].dtype, inputs[bias] is not None

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [None] * len(ctx.asked)
        if ctx.needs_input_grad[0]:
            weight = dense(ctx.saved_tensors, ctx.asked, (grad.shape[-1], ctx.in_features), ctx.dtype)
            # Without instructions for 16 bits (AVX2) a CPU takes 28 times as long for them as for float32.
            grads[0] = (grad.float() @ weight.float()).to(ctx.dtype) if weight.is_cpu else grad @ weight
        # needs_input_grad ends where the caller's arguments do.
        if ctx.has_bias and ctx.needs_input_grad[bias]:
            grads[bias] = grad.flatten(0, -2).sum(0) if grad.ndim > 1 else grad
        return tuple(grads)

    torch.library.register_autograd(f"llmquant::{name}", backward, setup_context=set_up, lib=library)


def define(
    library: torch.library.Library,
    signature: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    keys: Sequence[str] = ("CompositeExplicitAutograd",),
) -> Any:
    """Define an op, and return it.

    Made with torch.library.Library and not custom_op, which costs several times as much per call. `fake` is what it
    does to shapes and dtypes; `function` runs everywhere, or on the devices of `keys`.
    """
    name = signature.partition("(")[0]
    library.define(signature, tags=torch.Tag.pt2_compliant_tag)
    for key in keys:
        library.impl(name, function, key)
    torch.library.register_fake(f"llmquant::{name}", fake, lib=library)
    return getattr(torch.ops.llmquant, name).default
