"""Who works: after a late thread a caller stays alone for a while, and no other caller does."""

from __future__ import annotations

import ctypes
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from llmquant.kernels.cpu import native

pytestmark = pytest.mark.skipif(native.library() is None, reason="the C++ kernels are not installed")

Body = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
ParallelFor = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
)
GetNumThreads = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ctypes.c_uint32))


class Pool:
    """Two threads, in name: it counts who asked for them, and can be late."""

    def __init__(self) -> None:
        self.regions: Counter[int] = Counter()
        self.late_seconds = 0.0
        self.functions = ParallelFor(self.parallel_for), GetNumThreads(self.count)

    def parallel_for(self, begin: int, end: int, grain: int, body: int, context: int) -> int:
        self.regions[threading.get_ident()] += 1
        Body(body)(begin, end, context)
        time.sleep(self.late_seconds)
        return 0

    def count(self, into: ctypes._Pointer) -> int:  # pyright: ignore[reportPrivateUsage]
        into[0] = 2
        return 0


@pytest.fixture
def pool() -> Iterator[Pool]:
    library, pool = native.require(), Pool()
    library.llmquant_use_threads(*(ctypes.cast(function, ctypes.c_void_p) for function in pool.functions))
    try:
        yield pool
    finally:
        library.llmquant_use_threads(*native.torch_functions())


def call() -> int:
    """One call that asks for threads; returns the caller."""
    memory = torch.zeros(1 << 19, dtype=torch.int64)
    assert native.require().llmquant_stream_read(memory.data_ptr(), memory.nbytes) == 0
    return threading.get_ident()


def in_another_thread() -> int:
    callers: list[int] = []
    thread = threading.Thread(target=lambda: callers.append(call()))
    thread.start()
    thread.join()
    return callers[0]


def test_a_caller_that_lost_time_pauses_and_no_other(pool: Pool) -> None:
    def both() -> None:
        pool.late_seconds = 0.05
        me = call()
        assert pool.regions[me] == 1
        pool.late_seconds = 0
        call()
        assert pool.regions[me] == 1, "a pause of 200 ms"
        assert pool.regions[in_another_thread()] == 1, "the pause is mine alone"
        time.sleep(0.25)
        call()
        assert pool.regions[me] == 2, "the pause has an end"

    # In a thread of its own: what this one lost in earlier tests must not count.
    failed: list[BaseException] = []

    def run() -> None:
        try:
            both()
        except BaseException as error:  # noqa: BLE001 - handed on
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
