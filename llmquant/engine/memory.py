"""Memory of this process."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path


def peak_resident_bytes() -> int:
    """Largest resident size of this process so far.

    From VmHWM where /proc has it: `ru_maxrss` of a process that was started by a large one is that one's size.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def return_free_memory() -> None:
    """Give freed heap back to the system (glibc); elsewhere nothing.

    Tensors below 32 MB lie on the heap, where what is freed between two that live on stays resident.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
