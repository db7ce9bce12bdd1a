"""On a GPU: checks in the same process, then CUDA graphs of calls that take turns; or checks alone, in a dry run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from llmquant.kernels.bench.common.contender import Call, Contender, DeadContextError, Kernel, contender, said
from llmquant.kernels.bench.common.plan import DRY, Plan
from llmquant.kernels.bench.common.rows import Sample
from llmquant.kernels.bench.common.weights import Shape, Weight, random_weight
from llmquant.kernels.bench.gpu.ours import ours
from llmquant.kernels.bench.gpu.timing import Chain, Stopwatch
from llmquant.kernels.bench.peers import humming, marlin
from llmquant.kernels.bench.peers.torch import Dense, Int4Pack, IntMm
from llmquant.spec import Scheme

_EAGER_ROWS = 128  # beyond it, the GPU is slower than any host
_STREAM_BYTES = 1 << 30


def _torch(weight: Weight) -> list[Kernel]:
    if weight.scheme.activations is not None:
        return [IntMm()]
    return [Int4Pack()] if weight.scheme.bits == 4 else []


class GpuBench:
    """Everybody who runs on a GPU."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.watch = None if plan.where == DRY else Stopwatch(plan.seconds)
        self._device = self.watch.device if self.watch else "cpu"
        # Triton's interpreter, on the CPU, has no bfloat16.
        self._dtype = torch.bfloat16 if self.watch else torch.float16
        self.absent: dict[str, str] = {}
        self._peers: list[Callable[[Weight], list[Kernel]]] = []
        ways = {
            "torch": lambda: _torch,
            "humming": humming.loaded,
            "marlin": lambda: marlin.loaded(plan.vllm_library),
        }
        for name in plan.peers:
            try:
                self._peers.append(ways[name]())
            except Exception as error:  # noqa: BLE001 - others' code: whatever it raises must not end the run
                self.absent[name] = said(error)

    def contenders(self, shape: Shape) -> list[Contender]:
        """cuBLAS, ours, and the peers."""
        if self.watch:
            torch.cuda.empty_cache()
        schemes = [scheme for scheme in map(Scheme.parse, self.plan.schemes) if scheme.divides(shape.k)]
        weights = [random_weight(scheme, shape, self._device, self._dtype) for scheme in schemes]
        size = self.watch.rotate_bytes if self.watch else 0
        mode = "bf16" if self._dtype == torch.bfloat16 else "fp16"
        found = [contender(Dense(mode), weight, size, self._dtype) for weight in weights[:1]]
        for weight in weights:
            kernels = [*ours(weight), *(kernel for peer in self._peers for kernel in peer(weight))]
            found += [contender(kernel, weight, size, self._dtype) for kernel in kernels]
        return found

    def times(self, running: list[tuple[Contender, list[Call]]], rows: int) -> tuple[Sample, list[Sample | str]]:
        """Replays of graphs in turn, of a copy of memory and of everybody; and the host's time per call."""
        if self.watch is None:
            return Sample(), [Sample() for _ in running]
        source = torch.empty(_STREAM_BYTES, dtype=torch.uint8, device=self._device)
        copy: list[Call] = [partial(torch.empty_like(source).copy_, source)]
        found: list[Sample | str] = []
        chains: list[Chain] = []
        with self.watch.running():
            stream = self.watch.graph(copy, self.watch.once(copy[0]))
            for _, calls in running:
                try:
                    eager = self.watch.eager(calls) if rows <= _EAGER_ROWS else None
                    chains.append(self.watch.graph(calls, self.watch.once(calls[0])))
                    found.append(Sample(more={} if eager is None else {"eager_us": eager}))
                except Exception as problem:  # noqa: BLE001 - the others are to be timed all the same
                    self.check_alive()
                    found.append(said(problem))
            read, *taken = self.watch.chains([stream, *chains])
        timed = iter(taken)
        for sample in found:
            if isinstance(sample, Sample):
                sample.us = next(timed)
        return Sample(read, nbytes=2 * _STREAM_BYTES), found

    def check_alive(self) -> None:
        """Whether the GPU still answers.

        Raises:
            DeadContextError: if it does not.
        """
        if self.watch is None:
            return
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device=self._device).item()
        except RuntimeError as error:
            raise DeadContextError(said(error)) from error
