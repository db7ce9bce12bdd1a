"""Facts about the machine and the software that belong beside a number. No host or user names."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

VERSIONED = ("llmquant", "torch", "transformers")  # what decides the numbers of a report
NOT_INSTALLED = "not installed"


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


def cpu_name() -> str:
    """Name of the processor."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """Name of a torch device: the GPU's own name, or the device type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
