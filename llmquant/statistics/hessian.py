"""H = X^T X / tokens of the inputs X: (in_features, in_features), in their dtype, which is float32 in calibration."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

OF: Literal["inputs"] = "inputs"
PANEL = 256  # columns at a time: wide enough for a fast product


class Hessian:
    """The sum X^T X on and below its diagonal, and how many rows are in it."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._tokens = 0

    def add(self, rows: Float[Tensor, "tokens features"]) -> None:
        if self._sum is None:
            size = rows.shape[1]
            self._sum = torch.zeros(size, size, dtype=rows.dtype, device=rows.device)
        for begin, end in _panels(rows.shape[1]):
            self._sum[begin:, begin:end].addmm_(rows[:, begin:].T, rows[:, begin:end])
        self._tokens += rows.shape[0]

    def merge(self, other: Hessian) -> None:
        if other._sum is not None:
            self._sum = other._sum.clone() if self._sum is None else self._sum.add_(other._sum.to(self._sum))
        self._tokens += other._tokens

    def take(self) -> Float[Tensor, "features features"]:
        """The mean; symmetric. The sum becomes it in place, as no second matrix of this size may fit."""
        assert self._sum is not None
        mean = self._sum.div_(self._tokens)
        for begin, end in _panels(mean.shape[0]):
            mean[begin:end, end:] = mean[end:, begin:end].T
        return mean


def _panels(size: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + PANEL, size)) for begin in range(0, size, PANEL)]


start = Hessian
