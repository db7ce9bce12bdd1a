"""Registers the GPU kernel of `llmquant::linear_w8a8` (llmquant.kernels.ops.linear_w8a8); importing this does it.

On the CPU it is the reference that runs, unless the kernels are to run there in Triton's interpreter.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor

from llmquant.kernels.gpu import runtime
from llmquant.kernels.gpu.fallback import note_fallback
from llmquant.kernels.gpu.weight import DTYPES
from llmquant.kernels.ops import linear_w8a8 as definition

_library = torch.library.Library("llmquant", "FRAGMENT")


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
    from llmquant.kernels.gpu import launch_a8

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


_library.impl("linear_w8a8", linear_w8a8, "CUDA")
_library.impl("linear_w8a8", _linear_cpu, "CPU")
