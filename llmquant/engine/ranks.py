"""Processes that share the calibration windows and count together."""

from __future__ import annotations

from typing import Any

from torch import distributed

from llmquant.statistics.collect import Collector


class Ranks:
    """Processes that drive the same model, each on windows `rank`, `rank + size`, and so on. This is one alone."""

    rank, size = 0, 1

    def merge(self, collector: Collector) -> None:
        """Count in `collector` what all ranks have counted of the same layers, so that all hold the same."""


class Distributed(Ranks):
    """The processes of `torch.distributed`, such as `accelerate launch` starts; its group must be there.

    Each sends all it has counted to every other. All merge in the order of ranks, so all hold the same bits.
    """

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def merge(self, collector: Collector) -> None:
        counted: list[Any] = [None] * self.size
        distributed.all_gather_object(counted, collector.counted())
        collector.forget()
        for one in counted:
            collector.merge(one)
