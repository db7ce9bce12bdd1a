"""Random weights, their copies, and how far a product is from the exact one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmquant.kernels.ops.linear_w8a8 import quantize_tokens
from llmquant.kernels.product import PackedWeight
from llmquant.numerics.pack import pack, pack_zeros, unpack, unpack_zeros
from llmquant.spec import Scheme

_CHECKED = 512  # outputs, and at most so many rows, of a product in float64


class Shape(NamedTuple):
    """A weight (n outputs, k inputs)."""

    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.n}x{self.k}"


@dataclass(frozen=True)
class Weight:
    """The tensors of a checkpoint, described in kernels/ops/dequantize.py; W8A8 weights are packed like int8 ones."""

    scheme: Scheme
    shape: Shape
    packed: Tensor  # (n, words) int32
    scale: Tensor  # (n, groups) float
    zero: Tensor | None  # packed

    @property
    def stored(self) -> PackedWeight:
        """As most functions take it."""
        return PackedWeight(self.packed, self.scale, self.zero, self.scheme.bits, self.shape.k)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zeros in the checkpoint."""
        return sum(part.nbytes for part in (self.packed, self.scale, self.zero) if part is not None)

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.shape.k // self.scale.shape[1]

    @cached_property
    def codes(self) -> Tensor:
        """(n, k) int8."""
        return unpack(self.packed, self.scheme.bits, self.shape.k)

    def rows64(self, step: int = 1) -> Tensor:
        """Every `step`th row as exact products of codes and scales, (rows, k) float64."""
        codes = unpack(self.packed[::step].contiguous(), self.scheme.bits, self.shape.k).double()
        grouped = codes.view(codes.shape[0], self.scale.shape[1], -1)
        if self.zero is not None:
            zeros = unpack_zeros(self.zero, self.scheme.bits, self.shape.n)[::step]
            grouped = grouped - zeros.double()[..., None]
        return (grouped * self.scale[::step].double()[..., None]).view_as(codes)


def random_weight(scheme: Scheme, shape: Shape, device: str, dtype: torch.dtype = torch.bfloat16) -> Weight:
    """Random codes, and scales of a dtype; without the lowest code, for which some peers have a slower kernel."""
    codes = torch.randint(scheme.code_min + 1, scheme.code_max + 1, shape, dtype=torch.int8, device=device)
    groups = scheme.scale_shape(shape.n, shape.k)
    scale = (torch.rand(groups, device=device) + 0.5).mul_(0.01).to(dtype)
    zero = None
    if not scheme.symmetric:
        zeros = torch.randint(scheme.code_min, scheme.code_max + 1, groups, dtype=torch.int8, device=device)
        zero = pack_zeros(zeros, scheme.bits)
    return Weight(scheme, shape, pack(codes, scheme.bits), scale, zero)


def copies(rotate_bytes: int, weight_bytes: int) -> int:
    """How many weights are needed for `rotate_bytes`; two at least, so that no call repeats the one before."""
    return max(2, -(-rotate_bytes // weight_bytes))


def cloned(prepared: Any) -> Any:
    """The same in other memory; what is no tensor stays."""
    if isinstance(prepared, Tensor):
        # Strides matter to some kernels, and clone keeps them for dense tensors only.
        other = torch.empty_strided(prepared.shape, prepared.stride(), dtype=prepared.dtype, device=prepared.device)
        return other.copy_(prepared)
    if isinstance(prepared, tuple):
        return tuple(cloned(part) for part in prepared)
    return prepared


def relative_error(out: Tensor, x: Tensor, weight: Weight) -> float:
    """How far `out` (m, n) is from the exact product of `x` (m, k) and a weight, in some of its rows and outputs.

    For W8A8, whose definition quantizes x first, the exact product is that with x quantized.
    """
    step = max(1, weight.shape.n // _CHECKED)
    rows = torch.linspace(0, x.shape[0] - 1, min(x.shape[0], _CHECKED), device=x.device).round().long().unique()
    taken = x[rows].double()
    if weight.scheme.activations is not None:
        codes, scales = quantize_tokens(x[rows])
        taken = codes.double() * scales.double()
    wanted = taken @ weight.rows64(step).T
    return float((out[rows][:, ::step].double() - wanted).norm() / wanted.norm().clamp_min(1e-300))
