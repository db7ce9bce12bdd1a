"""Random weights where they are needed, and what a product with them should be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.bench.contender import Shape
from llmquant.kernels.bench.ours import dequantized64
from llmquant.kernels.ops.linear_w8a8 import quantize_tokens
from llmquant.numerics.pack import pack, pack_zeros, unpack
from llmquant.spec import Scheme

_CHECKED = 512  # outputs, and at most so many rows, of a product in float64
_ROTATED_L2 = 4  # times the level-2 cache that all copies of a weight fill together


@dataclass(frozen=True)
class Weight:
    """The tensors of a checkpoint, described in kernels/ops/dequantize.py; W8A8 weights are packed like int8 ones.

    Attributes:
        scheme: of the weight.
        shape: of the weight.
        packed: (n, words) int32.
        scale: (n, groups) float.
        zero: packed zeros, or None.
    """

    scheme: Scheme
    shape: Shape
    packed: Tensor
    scale: Tensor
    zero: Tensor | None

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


def random_weight(
    scheme: Scheme, shape: Shape, device: str, dtype: torch.dtype = torch.bfloat16, lowest: bool = False
) -> Weight:
    """A weight of random codes and scales.

    Args:
        scheme: of 4 or 8 bits.
        shape: of the weight.
        device: where.
        dtype: of the scales.
        lowest: whether the codes reach down to -8 or -128. For timing they do not: some peers have a faster kernel for
            weights that leave out the lowest code, and they shall have it.
    """
    low = scheme.code_min + (not lowest)
    codes = torch.randint(low, scheme.code_max + 1, (shape.n, shape.k), dtype=torch.int8, device=device)
    groups = scheme.scale_shape(shape.n, shape.k)
    scale = (torch.rand(groups, device=device) + 0.5).mul_(0.01).to(dtype)
    zero = None
    if not scheme.symmetric:
        zeros = torch.randint(scheme.code_min, scheme.code_max + 1, groups, dtype=torch.int8, device=device)
        zero = pack_zeros(zeros, scheme.bits)
    return Weight(scheme, shape, pack(codes, scheme.bits), scale, zero)


def copies(weight_bytes: int, cache_bytes: int) -> int:
    """How many copies of a weight are called in turn, so that none is found in the cache; two at least."""
    return max(2, -(-_ROTATED_L2 * cache_bytes // weight_bytes))


def cloned(prepared: Any) -> Any:
    """The same in other memory; what is no tensor stays."""
    if isinstance(prepared, Tensor):
        # Strides matter to some kernels, and clone keeps them for dense tensors only.
        other = torch.empty_strided(prepared.shape, prepared.stride(), dtype=prepared.dtype, device=prepared.device)
        return other.copy_(prepared)
    if isinstance(prepared, tuple):
        return tuple(cloned(part) for part in prepared)
    return prepared


@dataclass(frozen=True)
class Reference:
    """A product in float64: some of the outputs of some of the rows.

    Attributes:
        rows: (r,) which rows.
        step: every `step`th output.
        values: (r, outputs) float64.
    """

    rows: Tensor
    step: int
    values: Tensor

    def part(self, out: Tensor) -> Tensor:
        """What of a result has to be compared."""
        return out[self.rows][:, :: self.step]


def reference(x: Tensor, weight: Weight, quantized: bool = False) -> Reference:
    """The exact product.

    Args:
        x: (m, k) float.
        weight: checked.
        quantized: whether x becomes codes of 8 bits first, row by row, as W8A8 defines it.
    """
    step = max(1, weight.shape.n // _CHECKED)
    rows = torch.linspace(0, x.shape[0] - 1, min(x.shape[0], _CHECKED), device=x.device).round().long().unique()
    taken = x[rows].double()
    if quantized:
        codes, scales = quantize_tokens(x[rows])
        taken = codes.double() * scales.double()
    stored = (weight.packed, weight.scale, weight.zero)
    return Reference(rows, step, taken @ dequantized64(stored, weight.scheme, weight.shape, step).T)
