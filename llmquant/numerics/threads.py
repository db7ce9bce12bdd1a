"""Use threads where they help: over chunks of work, not inside small tensor operations.

torch starts and joins its threads for every operation on more than 32768 elements. On a machine whose cores are busy,
or that grants fewer cores than it shows, each join waits for a thread that is not running: thousands of small
operations then take fifty times longer than on one thread (measured: 375 s against 6 s for one grid search).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# Elements at a time: few enough for the cache, enough that starting threads costs little beside the work.
_CPU_CHUNK = 1 << 18
_GPU_CHUNK = 1 << 24


def row_chunks(rows: int, cols: int, device: torch.device) -> list[tuple[int, int]]:
    """Ranges of rows small enough for their float32 copies to stay in the cache (or, on a GPU, to be cheap)."""
    step = max(1, (_CPU_CHUNK if device.type == "cpu" else _GPU_CHUNK) // max(1, cols))
    return [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the torch operations of this thread on one core each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_chunks(function: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> list[Result]:
    """Apply `function` to each of `items`, which must be independent.

    Args:
        function: called without gradients; on the CPU from as many threads as torch uses, with one core per operation.
        items: such as ranges of rows.
        device: where the tensors are; on a GPU the calls are made one after another.

    Returns:
        The results in the order of `items`.
    """
    threads = min(torch.get_num_threads(), len(items))
    if device.type != "cpu" or threads <= 1:
        with torch.no_grad():
            return [function(item) for item in items]

    def call(item: Item) -> Result:
        # Gradient mode belongs to a thread, so the caller's does not reach this one.
        with torch.no_grad():
            return function(item)

    with one_thread(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(call, items))
