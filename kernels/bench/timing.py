"""Measure contenders side by side: short bursts in turn, each between reads of memory, all in one stretch of time.

One thread is timed by its processor time, which other processes cannot lengthen; more threads by the clock on the wall.
A round lets everybody run once, so that slow minutes of the machine hit all alike; only ratios within a run mean much.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from llmquant.kernels.bench.contender import OPENMP, Call, Contender
from llmquant.kernels.bench.stream import Stream

_ROUNDS = 8  # aimed at, within the seconds of a measurement
_LEAST_ROUNDS = 3
_WARM_UP_BELOW_NS = 5_000_000
# GCC's OpenMP threads spin for about 20 ms before they sleep.
_SETTLE_SECONDS = 0.03


@dataclass
class Samples:
    """Times of single calls in nanoseconds, and where among the copies the next one starts."""

    calls: list[Call]
    pool: str = OPENMP
    times: list[int] = field(default_factory=list)
    position: int = 0

    def burst(self, seconds: float, clock: Callable[[], int]) -> None:
        """Call on for `seconds`, once at least, after one call that only wakes threads where calls are short."""
        if not self.times or self.times[-1] < _WARM_UP_BELOW_NS:
            self._next()()
        deadline = time.perf_counter() + seconds
        while True:
            call = self._next()
            began = clock()
            call()
            self.times.append(clock() - began)
            if time.perf_counter() >= deadline:
                return

    def _next(self) -> Call:
        self.position = (self.position + 1) % len(self.calls)
        return self.calls[self.position]

    def quantile(self, share: float) -> float:
        """Microseconds that this share of the calls stayed below."""
        return float(np.quantile(self.times, share)) / 1e3


def measure(contenders: list[Contender], stream: Stream, rows: int, threads: int, seconds: float) -> list[Samples]:
    """Time all contenders.

    Args:
        contenders: who runs; the caller has set their threads.
        stream: read between them.
        rows: M.
        threads: decides the clock only.
        seconds: in all; longer where three calls of each take longer.

    Returns:
        Samples of the stream, then of each contender.
    """
    clock = clock_of(threads)
    running = [Samples(stream.calls)]
    running += [Samples(contender.bind(rows), contender.pool) for contender in contenders]
    turn = seconds / _ROUNDS / len(running)
    began, rounds, pool = time.perf_counter(), 0, OPENMP
    while rounds < _LEAST_ROUNDS or time.perf_counter() - began < seconds:
        for samples in running:
            if threads > 1 and samples.pool != pool:
                time.sleep(_SETTLE_SECONDS)
                pool = samples.pool
            samples.burst(turn, clock)
        rounds += 1
    return running


def clock_of(threads: int) -> Callable[[], int]:
    """Nanoseconds: of this thread's processor time for one thread, else of the wall."""
    return time.thread_time_ns if threads == 1 else time.perf_counter_ns
