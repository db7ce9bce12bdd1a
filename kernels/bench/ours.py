"""Our kernels as contenders: random packed weights, prepared, and the error of what they compute."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from llmquant.kernels.bench.cases import MODES
from llmquant.kernels.bench.contender import Call, Contender, Shape, copies
from llmquant.kernels.cpu import ops as cpu_ops
from llmquant.kernels.cpu import weight as cpu_weight
from llmquant.numerics.pack import pack_zeros, packed_words, unpack, unpack_zeros
from llmquant.spec import Scheme

_CHECKED_OUTPUTS = 512

Stored = tuple[Tensor, Tensor, Tensor | None]


def contenders(shape: Shape, schemes: tuple[str, ...], rotate_bytes: int) -> list[Contender]:
    """Each scheme in each mode; both modes share the weights.

    Raises:
        RuntimeError: if the kernels cannot take a scheme at this shape; says why.
    """
    found = []
    for name in schemes:
        scheme = Scheme.parse(name)
        first = random_weight(scheme, shape)
        if reason := cpu_weight.why_not(*first, scheme.bits, shape.k):
            raise RuntimeError(f"{name} at {shape}: {reason}")
        # Of the format: the kernel layout repeats a channel's scale, which must not count as work done.
        size = sum(part.nbytes for part in first if part is not None)
        blobs = [cpu_weight.prepare(*first, scheme.bits, shape.k)]
        for _ in range(copies(rotate_bytes, size) - 1):
            blobs.append(cpu_weight.prepare(*random_weight(scheme, shape), scheme.bits, shape.k))
        for mode in MODES:
            exact = mode == "exact"
            bind = partial(_bind, blobs, shape, exact)
            error = partial(_error, blobs[0], first, scheme, shape, exact)
            found.append(Contender("llmquant", name, mode, size, bind, error))
    return found


def random_weight(scheme: Scheme, shape: Shape) -> Stored:
    """Checkpoint tensors of a random weight; any bits are valid codes where codes fill the words."""
    low, high = -(1 << 31), 1 << 31
    packed = torch.randint(low, high, (shape.n, packed_words(shape.k, scheme.bits)), dtype=torch.int32)
    groups = scheme.scale_shape(shape.n, shape.k)
    scale = (torch.rand(groups) + 0.5).mul_(0.01).to(torch.bfloat16)
    if scheme.symmetric:
        return packed, scale, None
    zeros = torch.randint(scheme.code_min, scheme.code_max + 1, groups, dtype=torch.int8)
    return packed, scale, pack_zeros(zeros, scheme.bits)


def _bind(blobs: list[Tensor], shape: Shape, exact: bool, rows: int) -> list[Call]:
    # What a layer calls when nobody traces or differentiates: the function, not the op.
    x = torch.randn(rows, shape.k)
    return [partial(cpu_ops.linear, x, blob, None, shape.n, exact) for blob in blobs]


def _error(blob: Tensor, stored: Stored, scheme: Scheme, shape: Shape, exact: bool, rows: int) -> float:
    """Relative error in Frobenius norm on Gaussian input, of some of the outputs."""
    x = torch.randn(rows, shape.k)
    step = max(1, shape.n // _CHECKED_OUTPUTS)
    result = cpu_ops.linear(x, blob, None, shape.n, exact)[:, ::step].double()
    expected = x.double() @ dequantized64(stored, scheme, shape, step).T
    return float((result - expected).norm() / expected.norm())


def dequantized64(stored: Stored, scheme: Scheme, shape: Shape, step: int = 1) -> Tensor:
    """Every `step`th row of the weight as exact products of codes and scales, float64."""
    packed, scale, zero = stored
    codes = unpack(packed[::step].contiguous(), scheme.bits, shape.k).double()
    grouped = codes.view(codes.shape[0], scale.shape[1], -1)
    if zero is not None:
        grouped = grouped - unpack_zeros(zero, scheme.bits, shape.n)[::step].double()[..., None]
    return (grouped * scale[::step].double()[..., None]).view_as(codes)
