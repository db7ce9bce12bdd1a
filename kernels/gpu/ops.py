"""The ops of prepared weights on the GPU, for torch.compile, CUDA graphs and gradients.

    gpu_linear(Tensor x, Tensor weight, Tensor? bias, SymInt out_features, int[] form, bool exact) -> Tensor
    gpu_linear_fused(Tensor x, Tensor[] weights, Tensor[] biases, SymInt[] out_features, int[] form, bool exact,
                     Tensor? norm=None, float norm_eps=0., Tensor? residual=None, bool silu=False) -> Tensor[]
    gpu_embedding(Tensor ids, Tensor weight, SymInt out_features, int[] form, ScalarType dtype) -> Tensor
    gpu_dense(Tensor weight, SymInt out_features, int[] form, ScalarType dtype) -> Tensor

Weights are those of weight.py, and `form` is `Format.numbers()`. What is computed is what kernels/ops/linear_int.py
defines, with one difference: the weight `scale * (code - zero)` is not rounded to the dtype of the scales, so the
result is nearer to the exact one; for many rows, where the product is one of dense weights, it is rounded as defined.

The gradient of gpu_linear reaches x and bias; the fused op is for inference only. On the CPU the ops are there for
Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.gpu import launch
from llmquant.kernels.gpu.checks import check
from llmquant.kernels.gpu.launch_dense import dense
from llmquant.kernels.gpu.weight import Format, rows_of

_library = torch.library.Library("llmquant", "FRAGMENT")


def embedding(ids: Tensor, weight: Tensor, out_features: int, form: list[int], dtype: torch.dtype) -> Tensor:
    """Rows of a prepared weight, dequantized as linear_int.py does.

    Args:
        ids: (...) integers.
        weight: prepared, (out_features, in_features).
        out_features: the vocabulary.
        form: its format.
        dtype: of the result.

    Returns:
        (..., in_features) of `dtype`.

    Raises:
        RuntimeError: if an id is outside the vocabulary; on a GPU it is an assertion there, as in torch's embedding.
    """
    inside = ((ids >= 0) & (ids < out_features)).all()
    torch._assert_async(inside, f"an id is outside the vocabulary of {out_features}")
    rows = rows_of(weight, Format.read(form), out_features, ids.flatten().long())
    return rows.to(dtype).view(*ids.shape, -1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int, form: list[int], exact: bool) -> Tensor:
    return launch.linear(x, weight, bias, out_features, form, exact)


def _dense(weight: Tensor, out_features: int, form: list[int], dtype: torch.dtype) -> Tensor:
    return dense(weight, Format.read(form), out_features, dtype)


def _fake_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int,
    form: list[int],
    exact: bool,  # noqa: ARG001 - torch passes it
) -> Tensor:
    check(x, [weight], [] if bias is None else [bias], [out_features], Format.read(form))
    return x.new_empty((*x.shape[:-1], out_features))


def _fake_fused(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    out_features: list[int],
    form: list[int],
    exact: bool,  # noqa: ARG001 - torch passes it
    norm: Tensor | None = None,
    norm_eps: float = 0.0,  # noqa: ARG001 - torch passes it
    residual: Tensor | None = None,
    silu: bool = False,
) -> list[Tensor]:
    check(x, weights, biases, out_features, Format.read(form), norm, residual, silu)
    return [x.new_empty((*x.shape[:-1], n)) for n in (out_features[:1] if silu else out_features)]


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:  # noqa: ARG001 - torch passes it by name
    x, weight, bias, _, form, _ = inputs
    ctx.save_for_backward(weight)
    ctx.form, ctx.dtype, ctx.has_bias = form, x.dtype, bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None, None, None]:
    (weight,) = ctx.saved_tensors
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        # Through the op, not the function: a compiled backward traces it.
        grad_x = grad @ torch.ops.llmquant.gpu_dense.default(weight, grad.shape[-1], ctx.form, ctx.dtype)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        grad_bias = grad.flatten(0, -2).sum(0) if grad.ndim > 1 else grad
    return grad_x, None, grad_bias, None, None, None


def _define(signature: str, function: Any, fake: Any) -> None:
    name = signature.partition("(")[0]
    _library.define(signature, tags=torch.Tag.pt2_compliant_tag)
    for key in ("CUDA", "CPU"):
        _library.impl(name, function, key)
    torch.library.register_fake(f"llmquant::{name}", fake, lib=_library)


_define(
    "gpu_linear(Tensor x, Tensor weight, Tensor? bias, SymInt out_features, int[] form, bool exact) -> Tensor",
    _linear,
    _fake_linear,
)
torch.library.register_autograd("llmquant::gpu_linear", _backward, setup_context=_setup_context, lib=_library)
_define(
    "gpu_linear_fused(Tensor x, Tensor[] weights, Tensor[] biases, SymInt[] out_features, int[] form, bool exact,"
    " Tensor? norm=None, float norm_eps=0., Tensor? residual=None, bool silu=False) -> Tensor[]",
    launch.linear_fused,
    _fake_fused,
)
_define(
    "gpu_embedding(Tensor ids, Tensor weight, SymInt out_features, int[] form, ScalarType dtype) -> Tensor",
    embedding,
    lambda ids, weight, out_features, form, dtype: weight.new_empty(  # noqa: ARG005
        (*ids.shape, Format.read(form).in_features), dtype=dtype
    ),
)
_define(
    "gpu_dense(Tensor weight, SymInt out_features, int[] form, ScalarType dtype) -> Tensor",
    _dense,
    lambda weight, out_features, form, dtype: weight.new_empty(
        (out_features, Format.read(form).in_features), dtype=dtype
    ),
)
