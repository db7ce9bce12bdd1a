"""Whether a quantized model computes what it should, for decode.py, before anything is timed.

The yardstick is the same model with every packed layer in float32, from codes and scales alone. Beside the error of
the kernels against it stands that of the plain reference (weights rounded to the dtype of the activations, a dense
product). Both hold the rounding of all that is no packed layer; the kernels may not be worse than the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmquant.kernels.ops.dequantize import dequantize
from llmquant.nn.storage import PackedStorage

_SLACK = 1.5  # times the error of the reference
_FLOAT32 = 1e-3  # in float32 the reference is the yardstick itself; the CPU rounds activations to 16 bits


def check_logits(model: Any, prompt: Tensor, exact: bool) -> dict[str, Any]:
    """Compare the logits of all positions of a prompt (batch, tokens) of int64 ids.

    That gives relative errors (of the 2-norm), the share of positions with the same best token, and "ok". Only layers
    in the accuracy "exact" can be held to a limit.
    """
    kernels = _logits(model, prompt)
    with linears_by(model, in_float32):
        wanted = _logits(model, prompt)
    with linears_by(model, as_reference):
        reference = _relative(_logits(model, prompt), wanted)
    error = _relative(kernels, wanted)
    limit = _FLOAT32 if model.dtype == torch.float32 else _SLACK * reference
    finite = bool(torch.isfinite(kernels).all())
    return {
        "error": error,
        "error_of_reference": reference,
        "limit": limit if exact else None,
        "same_best_token": round((kernels.argmax(-1) == wanted.argmax(-1)).float().mean().item(), 4),
        "ok": finite and (not exact or error <= limit),
    }


@contextmanager
def linears_by(model: nn.Module, function: Any) -> Iterator[None]:
    """Let every packed layer compute `function(layer, x)`; fused layers run their original forward meanwhile."""
    layers = [module for module in model.modules() if isinstance(module, PackedStorage)]
    for layer in layers:
        layer.forward = partial(function, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def in_float32(layer: PackedStorage, x: Tensor) -> Tensor:
    """A layer by its definition, without rounding before the end."""
    stored = layer.packed()
    weight = dequantize(*stored._replace(scale=stored.scale.detach().float()), torch.float32)
    bias = None if layer.bias is None else layer.bias.float()
    return functional.linear(x.float(), weight, bias).to(x.dtype)


def as_reference(layer: PackedStorage, x: Tensor) -> Tensor:
    """A layer as plain transformers computes it: a dense weight in the dtype of `x`."""
    return functional.linear(x, layer.dequantize().to(x.dtype), layer.bias)


def _logits(model: Any, prompt: Tensor) -> Tensor:
    return model(prompt, use_cache=False).logits.float()


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
