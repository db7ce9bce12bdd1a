"""How much each output of a layer matters to what its block puts out: (out_features,), mean squares of gradients.

Their loss is the block's output, projected on signs drawn at random. The mean of the squared gradient of that is the
diagonal of J^T J, where J holds the derivatives of all outputs of the block by one output of the layer: what an error
of 1 there adds to the squared error of the block.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

OF: Literal["gradients"] = "gradients"


class SquaredGradients:
    """The sum of the squares, and how many rows are in it."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._tokens = 0

    def add(self, rows: Float[Tensor, "tokens features"]) -> None:
        self._add(rows.float().square().sum(0), rows.shape[0])

    def merge(self, other: SquaredGradients) -> None:
        if other._sum is not None:
            self._add(other._sum, other._tokens)

    def take(self) -> Float32[Tensor, " features"]:
        assert self._sum is not None
        return self._sum / self._tokens

    def _add(self, squares: Float32[Tensor, " features"], tokens: int) -> None:
        self._sum = squares.clone() if self._sum is None else self._sum.add_(squares.to(self._sum.device))
        self._tokens += tokens


start = SquaredGradients


def project(output: Float[Tensor, "*shape"], seed: int) -> Float[Tensor, ""]:
    """The sum of all elements of `output`, each with a sign that depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
    return (output * signs).sum()
