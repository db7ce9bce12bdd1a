"""Memory bandwidth, measured in about a second: decoding reads every weight once for each token."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from llmquant.kernels.cpu import native
from llmquant.machine import OtherPrograms

_BYTES = 256 << 20  # several times the last-level cache of a desktop, little memory
_SECONDS = 0.4  # per thread count


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """How fast memory was read."""

    gbs: dict[str, float]  # gigabytes (1e9) per second by number of threads; the keys are text, as JSON wants them
    method: str  # what read
    others: float | None  # share of all processors that other programs kept busy meanwhile, where the system tells

    @property
    def best(self) -> float:
        """The most that any number of threads reached."""
        return max(self.gbs.values())


def measure_bandwidth(threads: int, *, compiled: bool) -> Bandwidth:
    """Read memory on one thread and on `threads`, if `compiled` by the C++ library, else by torch."""
    read = native.stream_read_gbs if compiled else _read_by_torch
    others = OtherPrograms()
    gbs = {str(count): read(count, _SECONDS, _BYTES) for count in sorted({1, threads})}
    return Bandwidth(gbs, "C++ kernels" if compiled else "torch.sum", others.share())


def _read_by_torch(threads: int, seconds: float, size: int) -> float:
    """The highest of many readings: whatever else the machine does makes a reading lower, never higher."""
    buffer = torch.ones(size // 8, dtype=torch.int64)
    before, least, end = torch.get_num_threads(), float("inf"), time.perf_counter() + seconds
    torch.set_num_threads(threads)
    try:
        while time.perf_counter() < end:
            start = time.perf_counter()
            buffer.sum()
            least = min(least, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return size / least / 1e9
