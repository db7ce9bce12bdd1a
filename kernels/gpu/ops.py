"""The ops of prepared weights on the GPU, for torch.compile, CUDA graphs and gradients.

Weights are those of weight.py, and `form` is `Format.numbers()`. What is computed is what kernels/ops/linear_int.py
defines, with one difference: the weight `scale * (code - zero)` is not rounded to the dtype of the scales, so the
result is nearer to the exact one; for many rows, where the product is one of dense weights, it is rounded as defined.

The gradient of gpu_linear reaches x and bias; the fused op is for inference only. On the CPU the ops are there for
Triton's interpreter. The kernel of `llmquant::linear_w8a8` (kernels/ops/linear_w8a8.py) is registered here too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.gpu import launch, launch_a8, runtime
from llmquant.kernels.gpu.fallback import note_fallback
from llmquant.kernels.gpu.launch_dense import dense
from llmquant.kernels.gpu.weight import DTYPES, Format, rows_of
from llmquant.kernels.ops import linear_w8a8 as definition
from llmquant.kernels.ops.frozen import define, register_gradient
from llmquant.kernels.product import ASKED, Product


def embedding(ids: Tensor, weight: Tensor, out_features: int, form: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Rows of a prepared weight, dequantized as embedding_int.py does: (*ids.shape, in_features) of `dtype`.

    Raises:
        RuntimeError: if an id is outside the vocabulary; on a GPU it is an assertion there, as in torch's embedding.
    """
    inside = ((ids >= 0) & (ids < out_features)).all()
    torch._assert_async(inside, f"an id is outside the vocabulary of {out_features}")
    rows = rows_of(weight, Format.read(form), out_features, ids.flatten().long())
    return rows.to(dtype).view(*ids.shape, -1)


def linear_w8a8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, input_scale: Tensor | None = None
) -> Tensor:
    """What the op runs on a GPU, with the bits of the reference; arguments as there.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit.
    """
    reason = f"x of {x.dtype}" if x.dtype not in DTYPES else _why_off(x.device, os.environ.get(runtime.VARIABLE))
    if reason:
        note_fallback(f"linear_w8a8 runs its reference: {reason}")
        return definition.linear_reference(x, weight, scale, bias, input_scale)
    definition.check(x, weight, scale, bias, input_scale)
    for name, tensor in (("weight", weight), ("scale", scale), ("bias", bias), ("input_scale", input_scale)):
        device = x.device if tensor is None else tensor.device
        torch._check(
            device == x.device,
            lambda name=name, device=device: f"x is on {x.device}, but the {name} on {device}; move one of them",
        )
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():  # Triton launches on the current one
        return launch_a8.linear_w8a8(x, weight, scale, bias, input_scale)


@cache
def _why_off(device: torch.device, variable: str | None) -> str | None:  # noqa: ARG001 - a key: it changes the answer
    return runtime.why_off(device)


def _linear_cpu(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, input_scale: Tensor | None = None
) -> Tensor:
    run = linear_w8a8 if runtime.interpreting() else definition.linear_reference
    return run(x, weight, scale, bias, input_scale)


def _product(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_features: Sequence[int],
    form: Sequence[int],
    *asked: Any,
    **named: Any,
) -> Product:
    return Product(weights, biases, out_features, *asked, **named, form=form)


def _fake_fused(x: Tensor, *asked: Any, **named: Any) -> list[Tensor]:
    product = _product(*asked, **named)
    launch.check(x, product)
    return product.empty(x)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int, form: Sequence[int], exact: bool
) -> Tensor:
    return _fake_fused(x, [weight], [] if bias is None else [bias], [out_features], form, exact)[0]


def _dense_saved(saved: Sequence[Tensor], asked: Sequence[Any], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.ops.llmquant.gpu_dense.default(*saved, shape[0], asked[4], dtype)


_library = torch.library.Library("llmquant", "FRAGMENT")
_library.impl("linear_w8a8", linear_w8a8, "CUDA")
_library.impl("linear_w8a8", _linear_cpu, "CPU")

_define = partial(define, _library, keys=("CUDA", "CPU"))
_define(
    "gpu_linear(Tensor x, Tensor weight, Tensor? bias, SymInt out_features, int[] form, bool exact) -> Tensor",
    launch.linear,
    _fake,
)
register_gradient("gpu_linear", _dense_saved, bias=2, library=_library)
_define(
    "gpu_linear_fused(Tensor x, Tensor[] weights, Tensor[] biases, SymInt[] out_features, int[] form, "
    f"{ASKED}) -> Tensor[]",
    lambda x, *asked, **named: launch.linear_fused(x, _product(*asked, **named)),
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
    lambda weight, out_features, form, dtype: dense(weight, Format.read(form), out_features, dtype),
    lambda weight, out_features, form, dtype: weight.new_empty(
        (out_features, Format.read(form).in_features), dtype=dtype
    ),
)
