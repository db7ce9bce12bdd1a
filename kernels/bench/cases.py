"""What the CPU benchmark measures: the quick plan, the full one, and both cut down by the command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from llmquant.kernels.bench.contender import Shape

#: Schemes of ours; each runs in both modes.
SCHEMES = ("int4-g128", "int4-g32", "int4-g128-asym", "int8")
MODES = ("fast", "exact")
PEERS = ("torch", "onnxruntime", "llama.cpp")
_ROTATE_BYTES = 110_000_000
_MOST_ROTATE_BYTES = 512_000_000


@dataclass(frozen=True)
class Plan:
    """One run of the benchmark.

    Attributes:
        shapes: weights.
        batches: numbers of rows of the input, M.
        threads: thread counts.
        schemes: of our kernels.
        peers: whom to compare with, beside torch's fp32.
        seconds: measured time of each shape, thread count and batch, for all kernels together.
        rotate_bytes: distinct weights per kernel, far more than the cache holds.
    """

    shapes: tuple[Shape, ...]
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    schemes: tuple[str, ...]
    peers: tuple[str, ...]
    seconds: float
    rotate_bytes: int

    def cases(self) -> Iterator[tuple[Shape, int, int]]:
        """(shape, threads, batch), in the order of measuring: weights are made once per shape."""
        for shape in self.shapes:
            for threads in self.threads:
                for batch in self.batches:
                    yield shape, threads, batch


def quick_plan() -> Plan:
    """Ours against torch's fp32 at one large shape, in less than 50 seconds."""
    return Plan(
        shapes=(Shape(4096, 4096),),
        batches=(1, 4, 128),
        threads=_threads(),
        schemes=("int4-g128", "int8"),
        peers=(),
        seconds=3,
        rotate_bytes=rotate_bytes(last_level_cache()),
    )


def full_plan() -> Plan:
    """Everything."""
    shapes = (Shape(4096, 4096), Shape(11008, 4096), Shape(4096, 11008), Shape(2048, 768), Shape(768, 768))
    return replace(quick_plan(), shapes=shapes, batches=(1, 4, 16, 128, 512), schemes=SCHEMES, peers=PEERS, seconds=8)


def plan_from(args: argparse.Namespace) -> Plan:
    """The plan that the command line asks for.

    Raises:
        ValueError: if a size is not NxK.
    """
    plan = quick_plan() if args.quick else full_plan()
    changes = {
        "shapes": args.sizes and tuple(_shape(size) for size in args.sizes),
        "batches": args.m and tuple(args.m),
        "threads": args.threads and tuple(args.threads),
        "schemes": args.schemes and tuple(args.schemes),
        "peers": None if args.peers is None else tuple(args.peers),
        "seconds": args.seconds,
        "rotate_bytes": args.rotate_mb and int(args.rotate_mb * 1e6),
    }
    return replace(plan, **{name: value for name, value in changes.items() if value is not None})


def rotate_bytes(cache_bytes: int) -> int:
    """Distinct weights that no cache of this size keeps; limited, so that a huge cache does not take hours."""
    return min(max(_ROTATE_BYTES, 3 * cache_bytes), _MOST_ROTATE_BYTES)


def last_level_cache() -> int:
    """Bytes of the largest cache of the first processor; 0 where the system does not say."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=0)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> tuple[int, ...]:
    return (1, 2) if available_cores() > 1 else (1,)


def _shape(size: str) -> Shape:
    n, _, k = size.partition("x")
    if not (n.isdecimal() and k.isdecimal()):
        raise ValueError(f"a size is NxK, such as 4096x11008, not {size!r}")
    return Shape(int(n), int(k))
