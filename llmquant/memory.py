"""Memory: what this process has taken, what it gives back, and what is left."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def available_bytes() -> int | None:
    """Memory that the system or, where that is less, the container has left; None where nothing tells."""
    known = []
    if _MEMINFO.is_file():
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        known += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    for limit, used in _CGROUPS:
        if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
            known.append(int(most) - int(used.read_text()))
    return min(known, default=None)


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
