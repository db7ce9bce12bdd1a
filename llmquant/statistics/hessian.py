"""H = X^T X / tokens of the inputs X: (in_features, in_features), in their dtype, which is float32 in calibration."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

OF: Literal["inputs"] = "inputs"


class Hessian:
    """The sum X^T X, and how many rows are in it."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._tokens = 0

    def add(self, rows: Float[Tensor, "tokens features"]) -> None:
        if self._sum is None:
            size = rows.shape[1]
            self._sum = torch.zeros(size, size, dtype=rows.dtype, device=rows.device)
        self._sum.addmm_(rows.T, rows)
        self._tokens += rows.shape[0]

    def merge(self, other: Hessian) -> None:
        if other._sum is not None:
            self._sum = other._sum.clone() if self._sum is None else self._sum.add_(other._sum.to(self._sum))
        self._tokens += other._tokens

    def take(self) -> Float[Tensor, "features features"]:
        """The mean; symmetric. The sum becomes it in place, as no second matrix of this size may fit."""
        assert self._sum is not None
        return self._sum.div_(self._tokens)


start = Hessian
