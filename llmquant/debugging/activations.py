"""What goes into a module: ranges, tails, channels that stick out or are dead, and what 8 bits would cut off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OUTLIER = 20.0  # times the median channel's largest value
DEAD = 1e-6  # times it
_SHOWN = 8  # channels


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationStatistics:
    """Inputs of a module over all tokens.

    Attributes:
        kurtosis: fourth moment over the squared second, about zero; 3 of a normal distribution.
        outliers: channels whose largest value is above `OUTLIER` times the median channel's; the largest few.
        dead: how many channels are always (nearly) zero.
        clipped: share of values beyond the largest code of static 8-bit activations; None where they have no scale.
    """

    smallest: float
    largest: float
    kurtosis: float
    outliers: tuple[int, ...]
    dead: int
    clipped: float | None


class ChannelStatistics:
    """Adds up inputs (..., channels)."""

    def __init__(self, scale: float | None = None) -> None:
        self._scale = scale
        self._smallest = self._largest = 0.0
        self._second = self._fourth = 0.0
        self._count = self._clipped = 0
        self._peaks: Tensor | None = None

    def add(self, inputs: Tensor) -> None:
        """Add one call."""
        if not inputs.numel():
            return
        rows = inputs.reshape(-1, inputs.shape[-1])
        squares = rows.float().square()
        self._second += float(squares.sum(-1).double().sum())
        self._fourth += float(torch.linalg.vecdot(squares, squares).double().sum())
        peaks = rows.abs().amax(0)
        self._peaks = peaks if self._peaks is None else torch.maximum(self._peaks, peaks)
        smallest, largest = torch.aminmax(rows)
        self._smallest, self._largest = min(self._smallest, float(smallest)), max(self._largest, float(largest))
        self._count += rows.numel()
        if self._scale:
            self._clipped += int((rows.abs() > 127.5 * self._scale).sum())

    def statistics(self) -> ActivationStatistics:
        """All that was added."""
        peaks = torch.zeros(1) if self._peaks is None else self._peaks
        typical = float(peaks.median())
        order = peaks.argsort(descending=True)[:_SHOWN].tolist()
        second = self._second / max(self._count, 1)
        return ActivationStatistics(
            smallest=self._smallest,
            largest=self._largest,
            kurtosis=self._fourth / self._count / second**2 if second else 0.0,
            outliers=tuple(place for place in order if peaks[place] > OUTLIER * typical > 0),
            dead=int((peaks <= DEAD * typical).sum()),
            clipped=self._clipped / self._count if self._scale and self._count else None,
        )
