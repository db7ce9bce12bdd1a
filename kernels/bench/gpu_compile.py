"""Compile before timing, in many processes: the measuring process finds what they leave in the compilers' caches.

A kernel of ours is compiled by one call, since what is compiled depends on configuration, format and inputs, but
hardly on rows and outputs. Peers are compiled by whatever they need for that, after ours; that goes on while ours are
timed alone, and has ended when they are timed beside the peers, since it uses the GPU now and then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch

from llmquant.kernels.bench import gpu_ours, gpu_peers, gpu_sweep
from llmquant.kernels.bench.contender import Shape
from llmquant.kernels.bench.gpu_cases import Plan, cells
from llmquant.kernels.bench.gpu_kernel import Kernel, Peer
from llmquant.kernels.bench.gpu_weights import random_weight
from llmquant.kernels.gpu.choose.config import Config
from llmquant.spec import Scheme

_SPARE_CORES = 2


@dataclass(frozen=True)
class Job:
    """Something to compile.

    Attributes:
        key: what it is for: the sweep, one of `our_keys`, or a `peer_key`.
        function: to call in another process.
        arguments: for it.
    """

    key: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]


def our_keys(plan: Plan, shape: Shape, m: int) -> dict[str, tuple[str, Config]]:
    """What our kernels need in a layer, for some rows: a key each, with format and configuration."""
    found = {}
    for kernel in gpu_ours.kernels(plan, shape, m):
        config = kernel.config or kernel.chosen(shape, m)
        found[f"{kernel.form} {gpu_ours.config_name(config)} of {shape.k}"] = kernel.form, config
    return found


def peer_key(kernel: Kernel, layer: str) -> str:
    """The key of what a peer's kernel needs in a layer."""
    return f"{kernel.name} {layer}" if kernel.compiles == "layer" else kernel.name


def jobs(plan: Plan, peers: list[Peer]) -> Iterator[Job]:
    """Everything that a plan needs, in the order in which it is needed."""
    for case in gpu_sweep.cases(plan):
        yield Job(gpu_sweep.SWEEP, _sweep, (case,))
    seen: set[str] = set()
    for cell in cells(plan):
        shape = plan.layers[cell.layer]
        for key, (form, config) in our_keys(plan, shape, cell.m).items():
            if key not in seen:
                seen.add(key)
                yield Job(key, _ours, (form, config, shape, cell.m))
    for layer, shape in plan.layers.items():
        for peer in peers:
            for kernel in peer.kernels:
                key = peer_key(kernel, layer)
                batches = [m for m in plan.batches if kernel.why_not(shape, m) is None]
                if kernel.compiles and batches and key not in seen and kernel.format.fits(shape):
                    seen.add(key)
                    yield Job(key, _peer, (plan, peer.name, kernel.name, shape, batches))


class Compiling:
    """Jobs under way.

    Args:
        todo: the jobs, the most urgent first; the first ones run while the last ones are thought of.
        processes: at a time; None for nearly all cores.
    """

    def __init__(self, todo: Iterable[Job], processes: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0))
        self._pool = ProcessPoolExecutor(processes or max(1, cores - _SPARE_CORES), mp_context=get_context("spawn"))
        self._futures: dict[str, list[Future[None]]] = {}
        for job in todo:
            self._futures.setdefault(job.key, []).append(self._pool.submit(job.function, *job.arguments))

    def unfinished(self, keys: Iterable[str] | None = None) -> list[str]:
        """The keys among some, or all, whose jobs are not done. Those that failed are: they fail again where used."""
        wanted = self._futures if keys is None else keys
        return [key for key in wanted if not all(one.done() for one in self._futures.get(key, ()))]

    def wait(self, keys: Iterable[str], until: float, progress: Callable[[str], None]) -> None:
        """Wait for jobs.

        Args:
            keys: of the jobs; unknown ones need nothing.
            until: time.time() to wait for at most.
            progress: is told now and then that something goes on.
        """
        while self.unfinished(keys) and time.time() < until:
            progress(f"compiling: {len(self.unfinished())} to go")
            time.sleep(0.5)

    def close(self) -> None:
        """Stop, also in the middle of a job."""
        workers = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()


def _sweep(case: gpu_sweep.Case) -> None:
    gpu_sweep.run(case, "cuda")


def _ours(form: str, config: Config, shape: Shape, m: int) -> None:
    kernel = gpu_ours.Ours(form, config)
    prepared = kernel.prepare(random_weight(Scheme.parse(kernel.format.scheme), shape, "cuda"))
    kernel.call(torch.zeros(m, shape.k, dtype=torch.bfloat16, device="cuda"), prepared)
    torch.cuda.synchronize()


def _peer(plan: Plan, name: str, kernel_name: str, shape: Shape, batches: list[int]) -> None:
    (peer,) = gpu_peers.found(replace(plan, peers=(name,)))
    next(kernel for kernel in peer.kernels if kernel.name == kernel_name).compile(shape, batches)
