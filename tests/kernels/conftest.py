"""A quantized weight with its packed tensors, and what it must unpack to by a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from llmquant.kernels.product import PackedWeight
from llmquant.numerics.pack import pack, pack_zeros
from llmquant.spec import Scheme


@dataclass(frozen=True)
class Packed:
    """Packed tensors of one weight, and the parts that they were made of."""

    scheme: Scheme
    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    @property
    def stored(self) -> PackedWeight:
        """As kernels take it."""
        return PackedWeight(self.packed, self.scale, self.zero, self.scheme.bits, self.codes.shape[1])

    def weight64(self) -> Tensor:
        """The weight by a loop over its elements, products rounded to the dtype of the scales once, in float64."""
        out_features, in_features = self.codes.shape
        weight = torch.empty(out_features, in_features, dtype=torch.float64)
        per_group = in_features // self.scales.shape[1]
        codes = decode_bits(self.packed, self.scheme.bits, in_features)
        for row in range(out_features):
            for column in range(in_features):
                at = (row if self.scales.shape[0] > 1 else 0, column // per_group)
                zero = 0 if self.zeros is None else int(self.zeros[at])
                # Exact in Python's floats for 16-bit scales; for float32 scales the product is rounded only once too.
                product = (codes[row][column] - zero) * float(self.scales[at])
                weight[row, column] = float(torch.tensor(product, dtype=torch.float64).to(self.scales.dtype))
        return weight


def decode_bits(packed: Tensor, bits: int, cols: int) -> list[list[int]]:
    """Signed codes, read bit by bit."""
    rows = []
    for words in packed.tolist():
        stream = [(word >> bit) & 1 for word in words for bit in range(32)]
        values = [sum(stream[c * bits + b] << b for b in range(bits)) for c in range(cols)]
        rows.append([value - (1 << (bits - 1)) for value in values])
    return rows


@pytest.fixture
def make_packed() -> Callable[..., Packed]:
    """Makes a random `Packed`: `make_packed("int4-g32-asym", 5, 64, torch.bfloat16)`."""

    def make(name: str, out_features: int, in_features: int, dtype: torch.dtype = torch.float32) -> Packed:
        scheme = Scheme.parse(name)
        low, high = scheme.code_min, scheme.code_max + 1
        codes = torch.randint(low, high, (out_features, in_features), dtype=torch.int8)
        shape = scheme.scale_shape(out_features, in_features)
        # Both signs, and magnitudes over many powers of two, down to subnormal half precision.
        scales = (torch.randn(shape) * torch.exp2(-16 * torch.rand(shape))).to(dtype)
        zeros = None if scheme.symmetric else torch.randint(low, high, shape, dtype=torch.int8)
        per_tensor = scheme.granularity == "tensor"
        zero = zeros if zeros is None else zeros.reshape(1) if per_tensor else pack_zeros(zeros, scheme.bits)
        scale = scales.reshape(1) if per_tensor else scales
        return Packed(scheme, pack(codes, scheme.bits), scale, zero, codes, scales, zeros)

    return make
