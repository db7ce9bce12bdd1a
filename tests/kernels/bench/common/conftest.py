"""A kernel in plain torch that can be broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.bench.common.contender import OURS, Contender, Kernel, contender
from llmquant.kernels.bench.common.weights import Shape, random_weight
from llmquant.spec import Scheme


class Plain(Kernel):
    """`x @ weight.T`, and what `spoil` makes of it."""

    multiples, least_rows = (8, 64), 2

    def __init__(self, owner: str = OURS, spoil: Callable[[Tensor], Tensor] = lambda out: out, mode: str = "exact"):
        super().__init__(owner, mode)
        self.spoil = spoil

    def prepare(self, weight: Any) -> Tensor:
        return weight.rows64().float()

    def call(self, x: Tensor, prepared: Tensor) -> Tensor:
        return self.spoil((x.float() @ prepared.T).to(x.dtype))

    def limit(self, dtype: torch.dtype) -> float:
        return 1e-3 if self.owner == OURS else super().limit(dtype)


def unwritten(out: Tensor) -> Tensor:
    out[-1, -1] = torch.nan
    return out


def made(kernel: Kernel, rotate: int = 0) -> Contender:
    weight = random_weight(Scheme.parse("int4-g128"), Shape(64, 256), "cpu", torch.float16)
    return contender(kernel, weight, rotate, torch.float16)
