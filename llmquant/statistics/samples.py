"""A sample of the different inputs: (at most 256, in_features).

Which rows are in it depends on their values alone: those with the smallest hashes. So the sample is the same whatever
the order and the batches in which rows came, two halves merge into exactly the sample of the whole, and a row that
comes again and again (the first token of every text) is in it once at most.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

OF: Literal["inputs"] = "inputs"
LIMIT = 256
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)  # the golden ratio in 64 bits, as a signed number


class Samples:
    """The rows with the smallest hashes so far."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._rows: Tensor | None = None

    def add(self, rows: Float[Tensor, "tokens features"]) -> None:
        """Put the rows into the sample, and out of it what has the largest hashes."""
        rows = rows.float()
        together = rows if self._rows is None else torch.cat([self._rows, rows.to(self._rows.device)])
        hashes = _hashes(together)
        order = torch.sort(hashes, stable=True).indices
        # Equal hashes follow each other; of each run the first stays.
        order = order[hashes[order].diff(prepend=hashes[order[:1]] - 1) != 0]
        self._rows = together[order[: self._limit]]

    def merge(self, other: Samples) -> None:
        if other._rows is not None:
            self.add(other._rows)

    def take(self) -> Float32[Tensor, "rows features"]:
        """The sample, in the order of the hashes."""
        assert self._rows is not None
        return self._rows


start = Samples


def _hashes(rows: Float32[Tensor, "tokens features"]) -> Int64[Tensor, " tokens"]:
    """From the bits of the rows; the arithmetic wraps, and is the same on every device."""
    bits = rows.contiguous().view(torch.int32).long()
    factors = (torch.arange(1, rows.shape[1] + 1, device=rows.device) * _ODD) | 1
    mixed = (bits * factors).sum(1)
    for shift in (29, 32):
        mixed = (mixed ^ (mixed >> shift)) * _ODD
    return mixed ^ (mixed >> 31)
