"""What torch brings along: dense products (MKL, cuBLAS), and its weight-only and integer operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llmquant.kernels.bench.common.contender import DENSE, Kernel
from llmquant.kernels.bench.common.weights import Weight
from llmquant.kernels.ops.dequantize import dequantize_reference
from llmquant.numerics.pack import unpack_zeros

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Dense(Kernel):
    """torch.nn.functional.linear with a dense weight ("fp32", "bf16" or "fp16"): what all others are compared with."""

    def __init__(self, mode: str) -> None:
        super().__init__(DENSE, mode)

    def prepare(self, weight: Weight) -> Tensor:
        """The dense weight."""
        return dequantize_reference(*weight.stored, weight.scale.dtype).to(_DTYPES[self.mode])

    def call(self, x: Tensor, prepared: Tensor) -> Tensor:
        """The product."""
        return functional.linear(x, prepared)


class Int4Pack(Kernel):
    """aten._weight_int4pack_mm ("tinygemm" on a GPU): value = (code + 8 - 8) * scale + zero, all in bfloat16."""

    _TILES = 8  # on a GPU, along the inputs, of 16: the kernel's widest layout
    multiples = (16, 16 * _TILES)

    def __init__(self) -> None:
        super().__init__("torch int4pack", "bf16")

    def prepare(self, weight: Weight) -> tuple[Tensor, int, Tensor]:
        """Codes in its tiles; scales and offsets as (groups, n, 2)."""
        nibbles = weight.codes + 8
        if nibbles.is_cuda:
            nibbles = nibbles.view(torch.uint8)
            packed = torch.ops.aten._convert_weight_to_int4pack(nibbles[:, ::2] << 4 | nibbles[:, 1::2], self._TILES)
        else:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles.int(), self._TILES)
        scale = weight.scale.bfloat16()
        offset = torch.zeros_like(scale)
        if weight.zero is not None:
            offset = -scale * unpack_zeros(weight.zero, 4, weight.shape.n).to(scale.dtype)
        return packed, weight.group, torch.stack((scale, offset), -1).transpose(0, 1).contiguous()

    def call(self, x: Tensor, prepared: Any) -> Tensor:
        """The product."""
        aten = torch.ops.aten
        return (aten._weight_int4pack_mm if x.is_cuda else aten._weight_int4pack_mm_for_cpu)(x, *prepared)


class Int8Pack(Kernel):
    """aten._weight_int8pack_mm, for a scale per output."""

    def __init__(self) -> None:
        super().__init__("torch int8pack", "bf16")

    def prepare(self, weight: Weight) -> tuple[Tensor, Tensor]:
        """Codes as they are, scales as a row."""
        return weight.codes.clone(), weight.scale.bfloat16().flatten()

    def call(self, x: Tensor, prepared: Any) -> Tensor:
        """The product."""
        return torch.ops.aten._weight_int8pack_mm(x, *prepared)


class IntMm(Kernel):
    """torch._int_mm with what W8A8 needs around it in plain torch operators, as eager code would have it."""

    multiples, least_rows = (8, 8), 17

    def __init__(self) -> None:
        super().__init__("torch int_mm", "int8")

    def prepare(self, weight: Weight) -> tuple[Tensor, Tensor]:
        """Codes as they are, and scales as a row."""
        return weight.codes.clone(), weight.scale.float().T.contiguous()

    def call(self, x: Tensor, prepared: Any) -> Tensor:
        """Quantize rows, multiply, scale."""
        codes, scale = prepared
        steps = x.abs().amax(-1, keepdim=True).float() / 127.5
        rounded = (x / steps).round().clamp(-128, 127).to(torch.int8)
        return (torch.ops.aten._int_mm(rounded, codes.t()) * steps * scale).to(x.dtype)
