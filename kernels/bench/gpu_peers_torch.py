"""What torch brings along: cuBLAS for dense weights, its int4 kernel ("tinygemm"), and cuBLAS for int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llmquant.kernels.bench.contender import Shape
from llmquant.kernels.bench.gpu_cases import Plan
from llmquant.kernels.bench.gpu_kernel import CUBLAS, Kernel, Peer
from llmquant.kernels.bench.gpu_weights import Weight
from llmquant.kernels.ops.dequantize import dequantize_reference

_LEAST_ROWS_INT8 = 17  # of torch._int_mm


class Cublas(Kernel):
    """torch.nn.functional.linear with a dense 16-bit weight: what every other kernel is compared with."""

    def __init__(self) -> None:
        super().__init__(CUBLAS, "bf16")

    def prepare(self, weight: Weight) -> Tensor:
        """The dense weight, in the dtype of its scales."""
        return dense(weight)

    def call(self, x: Tensor, prepared: Tensor) -> Tensor:
        """The product."""
        return functional.linear(x, prepared)


class Tinygemm(Kernel):
    """aten._weight_int4pack_mm: value = (code + 8 - 8) * scale + zero, all in bfloat16."""

    _TILES = 8  # along the inputs, of 16: the kernel's widest layout
    multiples = (8, 16 * _TILES)

    def __init__(self, form: str) -> None:
        super().__init__("tinygemm", form)

    def prepare(self, weight: Weight) -> tuple[Tensor, int, Tensor]:
        """Codes in its tiles; scales and offsets as (groups, n, 2)."""
        from llmquant.numerics.pack import unpack_zeros

        nibbles = (weight.codes + 8).view(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(nibbles[:, ::2] << 4 | nibbles[:, 1::2], self._TILES)
        offset = torch.zeros_like(weight.scale)
        if weight.zero is not None:
            offset = -weight.scale * unpack_zeros(weight.zero, 4, weight.shape.n).to(weight.scale.dtype)
        return packed, weight.group, torch.stack((weight.scale, offset), -1).transpose(0, 1).contiguous()

    def call(self, x: Tensor, prepared: Any) -> Tensor:
        """The product."""
        return torch.ops.aten._weight_int4pack_mm(x, *prepared)


class IntMm(Kernel):
    """torch._int_mm with what W8A8 needs around it in plain torch operators, as eager code would have it."""

    multiples = (8, 8)

    def __init__(self, form: str) -> None:
        super().__init__("int_mm", form)

    def why_not(self, shape: Shape, m: int) -> str | None:
        """Few rows are not for it."""
        if m < _LEAST_ROWS_INT8:
            return f"torch._int_mm wants at least {_LEAST_ROWS_INT8} rows"
        return super().why_not(shape, m)

    def prepare(self, weight: Weight) -> tuple[Tensor, Tensor]:
        """Codes as they are, and scales as a row."""
        return weight.codes.clone(), weight.scale.float().T.contiguous()

    def call(self, x: Tensor, prepared: Any) -> Tensor:
        """Quantize rows, multiply, scale."""
        codes, scale = prepared
        steps = x.abs().amax(-1, keepdim=True).float() / 127.5
        rounded = (x / steps).round().clamp(-128, 127).to(torch.int8)
        return (torch.ops.aten._int_mm(rounded, codes.t()) * steps * scale).to(x.dtype)


def dense(weight: Weight) -> Tensor:
    """The dense weight, in the dtype of its scales."""
    parts = (weight.packed, weight.scale, weight.zero, weight.scheme.bits, weight.shape.k)
    return dequantize_reference(*parts, weight.scale.dtype)


def tinygemm(plan: Plan) -> Peer:
    """torch's int4 kernel."""
    wanted = [name for name in plan.formats if name.startswith("W4A16")]
    return Peer("tinygemm", tuple(map(Tinygemm, wanted)))


def int_mm(plan: Plan) -> Peer:
    """cuBLAS for int8."""
    return Peer("int_mm", tuple(map(IntMm, [name for name in plan.formats if name == "W8A8"])))
