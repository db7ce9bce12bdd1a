"""Processes that share the calibration windows and count together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from llmquant.statistics.collect import Collector


class Ranks(Protocol):
    """Several processes that drive the same model; each sees the windows `rank`, `rank + size`, and so on."""

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def merge(self, collector: Collector) -> None:
        """Count in `collector` what all ranks have counted of the same layers, so that all hold the same."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """One process."""

    rank: int = 0
    size: int = 1

    def merge(self, collector: Collector) -> None:
        """Nothing to add."""


ALONE = Alone()
