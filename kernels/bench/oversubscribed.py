"""What several threads cost when other processes want the cores: each call with T threads against one thread.

Everything is on the wall's clock here, since waiting is what is measured. The mean counts too: a kernel whose threads
wait for one that has lost its core is slow now and then, which a median hides.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from llmquant.kernels.bench.cases import Plan
from llmquant.kernels.bench.contender import Contender, Shape
from llmquant.kernels.bench.session import contenders_of, use_threads
from llmquant.kernels.bench.timing import Samples, clock_of

_SHAPES = (Shape(4096, 4096), Shape(768, 768))
_BUSY = 2
_ROUNDS = 12
# Longer than a slice of the scheduler, so that calls meet both sides of it.
_BURST_SECONDS = 0.12


def run(plan: Plan, threads: int) -> list[dict[str, Any]]:
    """Rows with the ratios of `threads` threads to one, M=1, every kernel of the plan that runs on torch's threads."""
    rows = []
    for shape in _SHAPES:
        contenders = contenders_of(plan, shape)
        with busy_processes(_BUSY), torch.inference_mode():
            for contender in contenders:
                one, more = _alternate(contender, threads)
                rows.append(_row(contender, shape, threads, one, more))
                print(f"oversubscribed {shape} {contender.name}: {rows[-1]['ratio']}", file=sys.stderr, flush=True)
    return rows


def _alternate(contender: Contender, threads: int) -> tuple[Samples, Samples]:
    calls = contender.bind(1)
    one, more = Samples(calls), Samples(calls)
    for _ in range(_ROUNDS):
        for samples, count in ((one, 1), (more, threads)):
            with use_threads(count):
                samples.burst(_BURST_SECONDS, clock_of(2))
    return one, more


def _row(contender: Contender, shape: Shape, threads: int, one: Samples, more: Samples) -> dict[str, Any]:
    means = [sum(samples.times) / len(samples.times) for samples in (one, more)]
    return {
        "kernel": contender.kernel, "scheme": contender.scheme, "mode": contender.mode,
        "m": 1, "n": shape.n, "k": shape.k, "threads": threads, "busy_processes": _BUSY,
        "us_one": round(one.quantile(0.5), 2), "us": round(more.quantile(0.5), 2),
        "us_q90": round(more.quantile(0.9), 2), "us_max": round(more.quantile(1), 2),
        "ratio": round(more.quantile(0.5) / one.quantile(0.5), 3), "ratio_mean": round(means[1] / means[0], 3),
    }  # fmt: skip


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that do nothing but compute, until the end of the block."""
    # They read their standard input's end too: they stop when this process is gone, whatever ended it.
    loop = "import threading, sys, os\n"
    loop += "threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()\n"
    loop += "while True: pass"
    running = [subprocess.Popen([sys.executable, "-c", loop], stdin=subprocess.PIPE) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()
