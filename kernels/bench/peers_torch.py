"""torch's own kernels as contenders: dense fp32 and bf16, and its weight-only operators for bf16 activations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from llmquant.kernels.bench.contender import Call, Contender, Shape, copies


def dense(shape: Shape, dtype: torch.dtype, rotate_bytes: int) -> Contender:
    """torch.nn.functional.linear."""
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    size = shape.n * shape.k * dtype.itemsize
    count = copies(rotate_bytes, size)
    weights = [torch.empty(shape.n, shape.k).uniform_(-0.1, 0.1).to(dtype) for _ in range(count)]
    return Contender(
        "torch", name, name, size, partial(_bind, [(w,) for w in weights], functional.linear, shape, dtype)
    )


def weight_only(shape: Shape, rotate_bytes: int) -> list[Contender]:
    """The int4 and int8 operators that serve bf16 activations; with fp32 they fall to a scalar loop."""
    found = [_int4(shape, group, rotate_bytes) for group in (128, 32) if shape.k % group == 0]
    return [*found, _int8(shape, rotate_bytes)]


def _int4(shape: Shape, group: int, rotate_bytes: int) -> Contender:
    groups = shape.k // group
    size = shape.n * shape.k // 2 + groups * shape.n * 2 * 2

    def weight() -> tuple[Tensor, int, Tensor]:
        # Packed bytes of any value are a valid weight.
        packed = torch.randint(0, 256, (shape.n, shape.k // 2), dtype=torch.uint8)
        return packed, group, torch.rand(groups, shape.n, 2).mul_(0.01).bfloat16()

    weights = [weight() for _ in range(copies(rotate_bytes, size))]
    bind = partial(_bind, weights, torch.ops.aten._weight_int4pack_mm_for_cpu, shape, torch.bfloat16)
    return Contender("torch", f"int4pack-g{group}", "bf16", size, bind)


def _int8(shape: Shape, rotate_bytes: int) -> Contender:
    size = shape.n * shape.k + shape.n * 2

    def weight() -> tuple[Tensor, Tensor]:
        codes = torch.randint(-128, 128, (shape.n, shape.k), dtype=torch.int8)
        return codes, torch.rand(shape.n).mul_(0.01).bfloat16()

    weights = [weight() for _ in range(copies(rotate_bytes, size))]
    bind = partial(_bind, weights, torch.ops.aten._weight_int8pack_mm, shape, torch.bfloat16)
    return Contender("torch", "int8pack", "bf16", size, bind)


def _bind(weights: list[tuple], op: Callable[..., object], shape: Shape, dtype: torch.dtype, rows: int) -> list[Call]:
    x = torch.randn(rows, shape.k).to(dtype)
    return [partial(op, x, *weight) for weight in weights]
