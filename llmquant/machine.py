"""Facts about the machine and the software. No host or user names; what a system does not tell is None."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

VERSIONED = ("llmquant", "torch", "transformers")  # what decides the numbers of a report
NOT_INSTALLED = "not installed"
BUSY = 0.15  # share of the processors that other programs take, from which on timings say little
_STAT = Path("/proc/stat")
_CPUINFO = Path("/proc/cpuinfo")
_QUOTA_V2 = Path("/sys/fs/cgroup/cpu.max")
_QUOTA_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """Threads and the cores they can have."""

    torch: int  # threads of torch, which the kernels use
    logical: int  # processors that this process may run on
    physical: int | None  # cores among them, where known (two hyperthreads share one)
    quota: float | None  # processors that a container grants, where it limits them

    @property
    def useful(self) -> int:
        """Threads that can run at the same time without sharing a core."""
        cores = self.physical or self.logical
        return max(1, min(cores, int(self.quota))) if self.quota else cores


def versions(packages: Sequence[str] = VERSIONED) -> dict[str, str]:
    """Versions of Python and of packages; "not installed" for one that is not, such as a mere source tree."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = NOT_INSTALLED
    return found


def machine(device: torch.device) -> dict[str, str | int]:
    """Processor, cores, threads and device."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "system": system_name(),
        "device": device_name(device),
    }


def system_name() -> str:
    """Operating system and architecture, such as "Linux x86_64"."""
    return f"{platform.system()} {platform.machine()}"


class OtherPrograms:
    """What other programs take from the moment this is made: busy time of all processors less that of this process."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), _busy_seconds(), time.process_time()

    def share(self) -> float | None:
        """Share of all processors they kept busy so far; None where the system does not tell."""
        start, busy, own = self._start
        now, busy_now, own_now = time.perf_counter(), _busy_seconds(), time.process_time()
        if busy is None or busy_now is None:
            return None
        used = (busy_now - busy) - (own_now - own)
        return min(1.0, max(0.0, used / (now - start) / (os.cpu_count() or 1)))


def _busy_seconds() -> float | None:
    """Time that all processors were busy, or taken by another virtual machine (Linux)."""
    if not _STAT.is_file():
        return None
    user, nice, system, _, _, irq, soft_irq, steal = map(int, _STAT.read_text(encoding="ascii").split()[1:9])
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")


def cpu_name() -> str:
    """Name of the processor."""
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def multiplies_bfloat16() -> bool | None:
    """Whether the processor has instructions that multiply bfloat16; None where the system does not tell."""
    lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if _CPUINFO.is_file() else []
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), None)
    return None if flags is None else bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def device_name(device: torch.device) -> str:
    """Name of a torch device: the GPU's own name, or the device type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def threads() -> Threads:
    """Count threads and cores."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cpus = Path("/sys/devices/system/cpu")
    siblings = {_text(cpus / f"cpu{number}/topology/thread_siblings_list") for number in usable}
    return Threads(
        torch=torch.get_num_threads(),
        logical=len(usable),
        physical=None if None in siblings else len(siblings),
        quota=_quota(),
    )


def _quota() -> float | None:
    """Processors that the control group grants."""
    words = (_text(_QUOTA_V2) or " ".join(_text(path) or "" for path in _QUOTA_V1)).split()
    if len(words) != 2 or not all(word.isdigit() for word in words):  # "max", -1 or nothing: no limit
        return None
    return int(words[0]) / int(words[1])


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # other systems, and containers that hide it
        return None
