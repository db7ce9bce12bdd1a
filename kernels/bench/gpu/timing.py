"""Timing a kernel on a CUDA device, so that it finds its weight in no cache.

    graph   a CUDA graph of calls on copies of the weight in turn, more than the level-2 cache holds: what a model with
            CUDA graphs sees. Time of a replay over its calls; kernels take turns, replay by replay.
    eager   the host's time per call, without waiting for the GPU.

Everything runs on one stream of its own, behind writes to memory that keep the GPU busy until the host is ahead.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from llmquant.kernels.bench.common.contender import Call
from llmquant.kernels.gpu import counters
from llmquant.kernels.gpu.fallback import fallbacks
from llmquant.turns import take_turns

_FLUSH_BYTES = 256_000_000
_FLUSHES = 3  # about 0.25 ms
_CHAIN_US = 1000.0  # of GPU time in a graph, so that its start does not count
_MOST_CALLS = 256  # in a graph
_LEAST_ROUNDS, _MOST_ROUNDS = 5, 21
_EAGER_CALLS, _EAGER_ROUNDS = 30, 3
_MORE_CAPTURES = 2
_ROTATED_L2 = 4  # times the level-2 cache that all copies of a weight fill together


@dataclass(frozen=True)
class Chain:
    """A captured graph, and how many calls are in it."""

    graph: Any
    calls: int


class Stopwatch:
    """Times calls on a CUDA device; all rounds of one `chains` take about so many seconds."""

    def __init__(self, seconds: float, device: str = "cuda") -> None:
        self._seconds = seconds
        self.device = device
        self.rotate_bytes: int = _ROTATED_L2 * torch.cuda.get_device_properties(0).L2_cache_size
        self._stream = torch.cuda.Stream()
        self._flush = torch.empty(_FLUSH_BYTES // 4, dtype=torch.int32, device=device)
        self._pool: Any = torch.cuda.graph_pool_handle()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The stream that everything runs on; no garbage is collected meanwhile, which could end a capture."""
        gc.disable()
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream), torch.inference_mode():
                yield
        finally:
            gc.enable()
            self._stream.synchronize()

    def once(self, call: Call) -> float:
        """Call twice, and time the second one, in microseconds."""
        call()
        return self._between(call)

    def graph(self, calls: Sequence[Call], us: float) -> Chain:
        """Capture calls in turn, as many as `_CHAIN_US` needs if one takes `us`."""
        wanted = max(len(calls), min(_MOST_CALLS, round(_CHAIN_US / max(us, 1.0))))
        count = -(-wanted // len(calls)) * len(calls)
        for call in calls:
            call()
        noted = fallbacks()
        graph = self._captured(calls, count)
        for _ in range(_MORE_CAPTURES):
            if fallbacks() == noted:
                break
            calls[0]()  # makes what the capture lacked (gpu/counters.py)
            noted = fallbacks()
            graph = self._captured(calls, count)
        graph.replay()
        return Chain(graph, count)

    def chains(self, chains: Sequence[Chain]) -> list[list[float]]:
        """Let graphs take turns, as often as the time allows; microseconds per call of each, round by round."""

        def run(chain: Chain) -> float:
            return self._between(chain.graph.replay) / chain.calls

        spent = sum(run(chain) * chain.calls for chain in chains) / 1e6
        wanted = max(_LEAST_ROUNDS, min(_MOST_ROUNDS, int(self._seconds / max(spent, 1e-6))))
        rounds = take_turns([partial(run, chain) for chain in chains], lambda done: done < wanted)
        return [list(times) for times in zip(*rounds, strict=True)]

    def eager(self, calls: Sequence[Call]) -> float:
        """Microseconds of the host per call: the median of a few rounds."""
        taken = []
        for _ in range(_EAGER_ROUNDS):
            self._stream.synchronize()
            began = time.perf_counter()
            for number in range(_EAGER_CALLS):
                calls[number % len(calls)]()
            taken.append((time.perf_counter() - began) * 1e6 / _EAGER_CALLS)
        self._stream.synchronize()
        return median(taken)

    def _between(self, call: Call) -> float:
        """Microseconds of GPU time between events around a call; writes before it hide the host's time to launch."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(_FLUSHES):
            self._flush.fill_(1)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    def _captured(self, calls: Sequence[Call], count: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Not torch.cuda.graph, which collects garbage and empties the allocator each time. All graphs share a pool:
        # they never run beside each other, and nobody reads their results.
        self._stream.synchronize()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            # A replay is over before the next one begins, so all graphs may count with the same counters.
            with counters.borrowed():
                for number in range(count):
                    calls[number % len(calls)]()
        except BaseException:
            with suppress(RuntimeError):  # the first error is the one to tell
                graph.capture_end()
            raise
        graph.capture_end()
        return graph
