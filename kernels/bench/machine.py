"""Facts about the machine and the software, without which a time means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmquant.kernels.bench.cases import available_cores, last_level_cache
from llmquant.kernels.cpu import native

_PACKAGES = ("torch", "numpy", "llmquant", "onnxruntime", "llama-cpp-python")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def facts(packages: tuple[str, ...] = _PACKAGES) -> dict[str, Any]:
    """Processor, instruction set, cores, cache, pages, versions of `packages`, commit, load and date."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {
            "cpu": _cpu(),
            "isa": native.isa(),
            "cores": available_cores(),
            "cache_bytes": last_level_cache(),
            "huge_pages": _HUGE_PAGES.read_text().strip() if _HUGE_PAGES.exists() else None,
            "load": load(),
        },
        "versions": {"python": platform.python_version()} | _versions(packages),
    }


def load() -> list[float] | None:
    """Processes that wanted the processor in the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The checkout's commit, "-dirty" where tracked files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
