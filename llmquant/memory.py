"""Memory: what this process has taken, what it gives back, and what is left."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")

_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of main memory, and the system's setting for huge pages ("always", "madvise" or "never")."""

    total: int | None
    available: int | None
    huge_pages: str | None


def memory() -> Memory:
    """Read sizes and the huge page setting (Linux)."""
    chosen = re.search(r"\[(\w+)\]", _HUGE_PAGES.read_text() if _HUGE_PAGES.is_file() else "")
    return Memory(
        total=_figure(_MEMINFO, "MemTotal"),
        available=available_bytes(),
        huge_pages=chosen[1] if chosen else None,
    )


def available_bytes() -> int | None:
    """Memory that the system or, where that is less, the container has left; None where nothing tells."""
    known = [] if (free := _figure(_MEMINFO, "MemAvailable")) is None else [free]
    for limit, used in _CGROUPS:
        if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
            known.append(int(most) - int(used.read_text()))
    return min(known, default=None)


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device: of the GPU, or as `available_bytes`."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()


def peak_resident_bytes() -> int:
    """Largest resident size of this process so far.

    From VmHWM where /proc has it: `ru_maxrss` of a process that was started by a large one is that one's size.
    """
    return _figure(_STATUS, "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _figure(file: Path, key: str) -> int | None:
    """The bytes of a line such as "VmHWM:  1234 kB"."""
    if not file.is_file():
        return None
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)


def return_free_memory() -> None:
    """Give freed heap back to the system (glibc); elsewhere nothing.

    Tensors below 32 MB lie on the heap, where what is freed between two that live on stays resident.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@dataclass(frozen=True, slots=True)
class Peak(Generic[Result]):
    """What a call returned, and the rise of the process's peak resident memory while it ran (None: cannot be told)."""

    result: Result
    rise_bytes: int | None
    note: str


def peak_rss_of(work: Callable[[], Result]) -> Peak[Result]:
    """Run `work` and measure how far resident memory rises above its level before.

    Linux only: VmHWM of /proc/self/status, reset through /proc/self/clear_refs. Where the reset is not permitted the
    process's peak so far may hide the rise, and none is reported.
    """
    gc.collect()
    return_free_memory()  # work that reuses freed heap would be measured as free of cost
    if not _STATUS.is_file():
        return Peak(work(), None, "peak memory is measured on Linux only")
    try:
        _CLEAR_REFS.write_text("5")  # 5 resets the peak resident set size, see proc_pid_clear_refs(5)
    except OSError:
        return Peak(work(), None, f"the peak counter cannot be reset here; process peak {peak_resident_bytes()} bytes")
    before = _figure(_STATUS, "VmRSS") or 0
    result = work()
    return Peak(result, max(0, peak_resident_bytes() - before), "rise of the peak resident set (VmHWM) over its start")
