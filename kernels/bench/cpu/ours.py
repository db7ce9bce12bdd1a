"""Our CPU kernels as what they are in a layer: the function that a layer calls, and not the op."""

from __future__ import annotations

import torch
from torch import Tensor

from llmquant.kernels.bench.common.contender import OURS, Kernel
from llmquant.kernels.bench.common.weights import Weight
from llmquant.kernels.cpu import ops as cpu_ops
from llmquant.kernels.cpu import weight as cpu_weight

_LIMITS = {"exact": 1e-4, "fast": 2e-2}


class Ours(Kernel):
    """One accuracy: "exact" or "fast"."""

    def __init__(self, mode: str) -> None:
        super().__init__(OURS, mode)

    def prepare(self, weight: Weight) -> tuple[Tensor, int]:
        """(the weight in the layout of the kernels, outputs)."""
        if reason := cpu_weight.why_not(weight.stored):
            raise ValueError(reason)
        return cpu_weight.prepare(weight.stored), weight.shape.n

    def call(self, x: Tensor, prepared: tuple[Tensor, int]) -> Tensor:
        """The product."""
        blob, n = prepared
        return cpu_ops.linear(x, blob, None, n, self.mode == "exact")

    def limit(self, dtype: torch.dtype) -> float:  # noqa: ARG002
        """By the rounding of activations, to 16 or 8 bits."""
        return _LIMITS[self.mode]
