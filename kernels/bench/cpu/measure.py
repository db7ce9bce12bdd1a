"""On the CPU: short bursts in turn, each between reads of memory, all in one stretch of time.

One thread is timed by its processor time, which other processes cannot lengthen; more threads by the clock on the wall.
A round lets everybody run once, so that slow minutes of the machine hit all alike; only ratios within a run mean much.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec

import torch

from llmquant.kernels.bench.common.contender import OPENMP, Call, Contender, contender
from llmquant.kernels.bench.common.plan import Plan
from llmquant.kernels.bench.common.rows import Sample
from llmquant.kernels.bench.common.weights import Shape, random_weight
from llmquant.kernels.bench.cpu.ours import Ours
from llmquant.kernels.bench.cpu.stream import Stream
from llmquant.kernels.bench.peers.torch import Dense, Int4Pack, Int8Pack
from llmquant.spec import Scheme
from llmquant.turns import take_turns

#: The tenth percentile, of kernels and of the memory alike: what other processes disturbed least.
HEADLINE = 0.1
_ROUNDS = 8  # aimed at, within the seconds of a measurement
_LEAST_ROUNDS = 3
_WARM_UP_BELOW_NS = 5_000_000
# GCC's OpenMP threads spin for about 20 ms before they sleep.
_SETTLE_SECONDS = 0.03
_MODULES = {"onnxruntime": ("onnxruntime", "onnx"), "llama.cpp": ("llama_cpp",)}


class CpuBench:
    """Everybody who runs on the CPU, in one process with one number of threads: pools keep their size."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.absent = {
            peer: f"{missing[0]} is not installed"
            for peer in plan.peers
            if (missing := [name for name in _MODULES.get(peer, ()) if find_spec(name) is None])
        }
        torch.set_num_threads(plan.threads)
        self._stream = Stream(plan.rotate_bytes * 5 // 2)

    def contenders(self, shape: Shape) -> list[Contender]:
        """torch's fp32, ours, and the peers."""
        plan, size = self.plan, self.plan.rotate_bytes
        weights = {name: random_weight(Scheme.parse(name), shape, "cpu") for name in plan.schemes}
        first = next(iter(weights.values()))
        found = [contender(Dense("fp32"), first, size, torch.float32)]
        for weight in weights.values():
            found += [contender(Ours(mode), weight, size, torch.float32) for mode in ("exact", "fast")]
        takes_part = [peer for peer in plan.peers if peer not in self.absent]
        if "torch" in takes_part:
            found.append(contender(Dense("bf16"), first, size, torch.bfloat16))
            for name, weight in weights.items():
                kernel = {4: Int4Pack, 8: Int8Pack}.get(weight.scheme.bits)
                if kernel and name in ("int4-g128", "int4-g32", "int8"):
                    found.append(contender(kernel(), weight, size, torch.bfloat16))
        if "llama.cpp" in takes_part:
            from llmquant.kernels.bench.peers import llamacpp

            llamacpp.set_threads(plan.threads)
            found += llamacpp.contenders(shape, size)
        if "onnxruntime" in takes_part:
            from llmquant.kernels.bench.peers import onnxruntime

            found += onnxruntime.contenders(shape, plan.threads, size)
        return found

    def times(self, running: list[tuple[Contender, list[Call]]], rows: int) -> tuple[Sample, list[Sample | str]]:  # noqa: ARG002
        """Bursts in turn, of reads of memory and of everybody."""
        bursts = [Bursts(self._stream.calls), *(Bursts(calls, each.pool) for each, calls in running)]
        measure(bursts, self.plan.threads, self.plan.seconds)
        stream, *taken = (Sample([ns / 1e3 for ns in each.times], HEADLINE) for each in bursts)
        stream.nbytes = self._stream.chunk_bytes
        return stream, list(taken)

    def check_alive(self) -> None:
        """A process on a CPU goes on after an exception."""


@dataclass
class Bursts:
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


def measure(bursts: list[Bursts], threads: int, seconds: float) -> None:
    """Let all take turns, for so many seconds, or longer where three bursts of each take longer."""
    clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    turn, began, last_pool = seconds / _ROUNDS / len(bursts), time.perf_counter(), OPENMP

    def run(each: Bursts) -> None:
        nonlocal last_pool
        if threads > 1 and each.pool != last_pool:
            time.sleep(_SETTLE_SECONDS)
        last_pool = each.pool
        each.burst(turn, clock)

    take_turns(
        [partial(run, each) for each in bursts],
        lambda done: done < _LEAST_ROUNDS or time.perf_counter() - began < seconds,
    )
