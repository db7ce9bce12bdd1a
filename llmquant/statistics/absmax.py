"""The largest magnitude of each input: (in_features,)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

OF: Literal["inputs"] = "inputs"


class AbsoluteMaxima:
    """The largest magnitude so far."""

    def __init__(self) -> None:
        self._largest: Tensor | None = None

    def add(self, rows: Float[Tensor, "tokens features"]) -> None:
        self._raise(rows.abs().amax(0))

    def merge(self, other: AbsoluteMaxima) -> None:
        if other._largest is not None:
            self._raise(other._largest)

    def take(self) -> Float[Tensor, " features"]:
        assert self._largest is not None
        return self._largest

    def _raise(self, values: Float[Tensor, " features"]) -> None:
        self._largest = values if self._largest is None else torch.maximum(self._largest, values.to(self._largest))


start = AbsoluteMaxima
