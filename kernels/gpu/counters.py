"""Counters for split-K: one int32 per block of a result, zero before each launch, and left at zero by it (epilogue.py).

Two launches that can run at the same time must not share any. Those of one stream cannot: a launch that starts early
(Config.pdl) waits for the one in front before it counts. So without CUDA graphs each stream has one buffer.

A captured launch runs on whatever stream its graph is replayed on, beside other graphs. So every captured call keeps
counters of its own, cut from a reserve, for good: nobody tells when a graph is gone. That is safe, because a graph
never runs beside itself. The reserve is made by the first call outside a capture, and a new one when it was too small;
meanwhile the counters are allocated, and zeroed by a node of the graph at every replay: correct, slower, and noted.

Buffers are made by a thread of their own. The calling thread may be in the warm-up of torch.compile's CUDA graphs,
which diverts what it allocates into a pool that is later taken back; or in inference mode, or under a fake mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor

from llmquant.kernels.gpu.fallback import note_fallback

_LEAST = 1 << 12  # counters of a stream
_RESERVE = 1 << 18  # of a device, for graphs: 1 MB, some thousand captured calls
_ALIGNED = 32  # 128 bytes: Triton compiles again for addresses that are aligned otherwise


class Counters:
    """The counters of a process. One instance serves all; tests make their own."""

    def __init__(
        self,
        capturing: Callable[[], bool],
        stream: Callable[[int], int],
        zeros_for_good: Callable[[int, int], Tensor],
        zeros: Callable[[int, int], Tensor],
        reserve: int = _RESERVE,
    ) -> None:
        """Make a set; the functions are torch's, but in tests.

        Args:
            capturing: whether the current stream is being captured.
            stream: the handle of the current stream of a device.
            zeros_for_good: so many zeros on a device, ready for every stream.
            zeros: so many zeros on a device, in the order of its current stream.
            reserve: counters that a device keeps ready for captures.
        """
        self._capturing, self._stream, self._size = capturing, stream, reserve
        self._zeros_for_good, self._zeros = zeros_for_good, zeros
        self._buffers: dict[tuple[int, int], Tensor] = {}
        self._reserves: dict[int, Tensor] = {}
        self._used: dict[int, int] = {}
        self._missing: dict[int, int] = {}  # what the reserve lacked since it was made
        self._kept: list[Tensor] = []  # graphs and launches under way still use them
        self._lock = Lock()

    def get(self, device: torch.device, count: int) -> Tensor:
        """Counters for one launch, on the current stream of a device: (at least count,) int32, zeros when it begins."""
        if device.type == "cpu":
            return torch.zeros(count, dtype=torch.int32)
        index = torch.cuda.current_device() if device.index is None else device.index
        if self._capturing():
            return self._captured(index, count)
        buffer = self._buffers.get((index, self._stream(index)))
        if buffer is None or buffer.numel() < count or index in self._missing:
            with self._lock:
                buffer = self._grown(index, count)
        return buffer

    def _grown(self, index: int, count: int) -> Tensor:
        """Make, or make again, what is not there or too small."""
        if index not in self._reserves or self._missing.get(index):
            self._size = max(self._size, 2 * self._missing.pop(index, 0))
            self._kept.append(self._zeros_for_good(index, self._size))
            self._reserves[index], self._used[index] = self._kept[-1], 0
        key = (index, self._stream(index))
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < count:
            size = _LEAST if buffer is None else 2 * buffer.numel()
            self._kept.append(self._zeros_for_good(index, max(size, count)))
            buffer = self._buffers[key] = self._kept[-1]
        return buffer

    def _captured(self, index: int, count: int) -> Tensor:
        size = -(-count // _ALIGNED) * _ALIGNED
        with self._lock:
            reserve, first = self._reserves.get(index), self._used.get(index, 0)
            if reserve is not None and first + size <= reserve.numel():
                self._used[index] = first + size
                return reserve[first : first + count]
            self._missing[index] = self._missing.get(index, 0) + size
        note_fallback("CUDA graph captured without reserved split-K counters; each replay clears its own")
        return self._zeros(index, count)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Counters that graphs are captured with inside go back afterwards; none of those graphs may run any more.

        For benchmarks, which capture more graphs than a reserve is made for.
        """
        with self._lock:
            before = {index: (reserve, self._used[index]) for index, reserve in self._reserves.items()}
        try:
            yield
        finally:
            with self._lock:
                for index, reserve in self._reserves.items():
                    known, used = before.get(index, (None, 0))
                    self._used[index] = used if known is reserve else 0


def _zeros(index: int, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int32, device=f"cuda:{index}")


def _zeros_for_good(index: int, count: int) -> Tensor:
    def make() -> Tensor:
        zeros = _zeros(index, count)
        torch.cuda.current_stream(index).synchronize()  # whichever stream uses them, they are zero by then
        return zeros

    with ThreadPoolExecutor(1, thread_name_prefix="llmquant-counters") as thread:
        return thread.submit(make).result()


def _handle(index: int) -> int:
    return torch._C._cuda_getCurrentRawStream(index)  # what Triton asks too; the public way takes microseconds


_counters = Counters(torch.cuda.is_current_stream_capturing, _handle, _zeros_for_good, _zeros)
counters_for, borrowed = _counters.get, _counters.borrowed
