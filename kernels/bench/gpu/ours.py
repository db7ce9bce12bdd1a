"""Our GPU kernels as what they are in a layer: prepared weights, and the function that a layer calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.bench.common.contender import OURS, ROUNDED, Kernel
from llmquant.kernels.bench.common.weights import Weight
from llmquant.kernels.gpu.weight import Format, prepare

#: Of 4-bit weights with activations of 8: 6e-3 for Gaussian ones in blocks of 128.
_FAST = 1e-2


class Ours(Kernel):
    """One accuracy, "exact" or "fast", in the configuration that dispatch.py chooses, which is what users get."""

    def __init__(self, mode: str) -> None:
        super().__init__(OURS, mode)

    def prepare(self, weight: Weight) -> tuple[Any, ...]:
        """(prepared weight, n, numbers of its format)."""
        return prepare(weight.stored), weight.shape.n, Format.of(weight.stored).numbers()

    def call(self, x: Tensor, prepared: Any) -> Tensor:
        """The product."""
        from llmquant.kernels.gpu.launch import linear

        weight, n, form = prepared
        return linear(x, weight, None, n, form, self.mode == "exact")

    def limit(self, dtype: torch.dtype) -> float:
        """That of rounding the result, or of rounding activations."""
        return ROUNDED[dtype] if self.mode == "exact" else _FAST


class OursW8A8(Kernel):
    """8-bit weights and activations."""

    def __init__(self) -> None:
        super().__init__(OURS, "int8")

    def prepare(self, weight: Weight) -> tuple[Tensor, Tensor]:
        """(codes, scales), as in the checkpoint."""
        return weight.codes.clone(), weight.scale

    def call(self, x: Tensor, prepared: Any) -> Tensor:
        """The product."""
        from llmquant.kernels.gpu.launch_a8 import linear_w8a8

        return linear_w8a8(x, *prepared)

    def limit(self, dtype: torch.dtype) -> float:
        """That of rounding the result."""
        return ROUNDED[dtype]


def ours(weight: Weight) -> list[Kernel]:
    """All accuracies of a weight; 8-bit ones have only one."""
    if weight.scheme.activations is not None:
        return [OursW8A8()]
    return [Ours(mode) for mode in (("exact", "fast") if weight.scheme.bits <= 4 else ("exact",))]
