"""How fast memory can be read in sequence, with the threads and page size that our kernels use."""

from __future__ import annotations

import mmap
import sys
from functools import partial
from typing import Any

import torch

from llmquant.kernels.bench.common.contender import Call
from llmquant.kernels.cpu import native

_HUGE_PAGE = 2 << 20
_CHUNK_BYTES = 8 << 20  # about a 4-bit weight: interrupted as often by other processes as a kernel is


class Stream:
    """A buffer much larger than the cache, in huge pages where the system has them, read chunk by chunk."""

    def __init__(self, size: int) -> None:
        size = max(1 << 20, size) // 64 * 64
        if sys.platform == "linux":
            # Private: the default is shared memory, which the system does not put into huge pages.
            self._memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        else:
            self._memory = mmap.mmap(-1, size + _HUGE_PAGE)
        raw = torch.frombuffer(self._memory, dtype=torch.uint8)
        begin = -raw.data_ptr() % _HUGE_PAGE
        self._buffer = raw[begin : begin + size].view(torch.int64)
        self._buffer.copy_(torch.arange(len(self._buffer)))
        count = max(2, size // _CHUNK_BYTES)
        self.chunk_bytes = size // count // 64 * 64
        step = self.chunk_bytes // 8
        chunks = [self._buffer[step * number : step * (number + 1)] for number in range(count)]
        self.calls: list[Call] = [_read(chunk) for chunk in chunks]


def _read(chunk: torch.Tensor) -> Call:
    """Our library's loop, which uses torch's threads; torch's sum of 64-bit integers where it has none."""
    library: Any = native.library()
    if library is None or not hasattr(library, "llmquant_stream_read"):
        return chunk.sum
    return partial(library.llmquant_stream_read, chunk.data_ptr(), chunk.nbytes)
