"""Where the time of a forward pass goes, for decode_gpu.py: our kernels, other kernels by name, and nothing at all.

CUPTI reports when each kernel ran, inside CUDA graphs too. Kernels may overlap (programmatic dependent launch), so
times are those of the union of intervals: how long at least one kernel of a set was running.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

_TOP = 8  # other kernels that are named


class Interval(NamedTuple):
    """When a kernel, a copy or a memset ran, in microseconds."""

    name: str
    begin: float
    end: float


def our_kernels() -> set[str]:
    """Names of all Triton kernels in llmquant.kernels.gpu; those of torch.compile have other names."""
    from triton.runtime.jit import KernelInterface

    package = importlib.import_module("llmquant.kernels.gpu")
    modules = [
        importlib.import_module(f"{package.__name__}.{each.name}") for each in pkgutil.iter_modules(package.__path__)
    ]
    return {name for module in modules for name, value in vars(module).items() if isinstance(value, KernelInterface)}


def record(step: Callable[[], object], steps: int) -> list[Interval]:
    """What ran on the device during some steps; the first one, untraced, warms up."""
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    return [
        Interval(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]


def summary(intervals: Iterable[Interval], ours: set[str], steps: int, step_us: float | None) -> dict[str, Any]:
    """Shares of the time.

    Args:
        intervals: of some steps.
        ours: names of our kernels.
        steps: how many.
        step_us: wall time of a step without the profiler, if it was measured.

    Returns:
        microseconds per step, and shares of `step_us`; and the other kernels that take longest.
    """
    intervals = list(intervals)
    by_name: dict[str, list[float]] = defaultdict(list)
    for each in intervals:
        by_name[each.name].append(each.end - each.begin)
    busy = covered(intervals) / steps
    own = covered(each for each in intervals if each.name in ours) / steps
    others = sorted(((sum(times), name) for name, times in by_name.items() if name not in ours), reverse=True)
    found: dict[str, Any] = {
        "device_us": round(busy, 1),
        "our_kernels_us": round(own, 1),
        "launches": round(len(intervals) / steps, 1),
        "our_launches": round(sum(len(times) for name, times in by_name.items() if name in ours) / steps, 1),
        "others": [
            {"kernel": name[:120], "us": round(time / steps, 1), "launches": round(len(by_name[name]) / steps, 1)}
            for time, name in others[:_TOP]
        ],
    }
    if step_us:
        found |= {
            "step_us": round(step_us, 1),
            "share_outside_our_kernels": round(1 - own / step_us, 4),
            "share_idle": round(max(0.0, 1 - busy / step_us), 4),
        }
    return found


def covered(intervals: Iterable[Interval]) -> float:
    """Length of the union of some intervals."""
    total, reached = 0.0, float("-inf")
    for _, begin, end in sorted(intervals, key=lambda each: each.begin):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
