"""Processes that share the calibration windows and count together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import distributed

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


class Distributed:
    """The processes of `torch.distributed`, such as `accelerate launch` starts; its group must be there.

    Each sends all it has counted to every other. All merge in the order of ranks, so all hold the same bits.
    """

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        return distributed.get_rank()

    @property
    def size(self) -> int:
        """How many there are."""
        return distributed.get_world_size()

    def merge(self, collector: Collector) -> None:
        """Count in `collector` what all ranks have counted of the same layers."""
        counted: list[Any] = [None] * self.size
        distributed.all_gather_object(counted, collector.counted())
        collector.forget()
        for one in counted:
            collector.merge(one)
