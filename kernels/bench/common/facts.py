"""Date, commit, machine and versions, without which a time means nothing; and the file that they are written to."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from llmquant.kernels.cpu import native
from llmquant.machine import machine, versions

_PACKAGES = (
    "llmquant", "torch", "transformers", "triton", "numpy",
    "onnxruntime", "llama-cpp-python", "humming-kernels", "vllm",
)  # fmt: skip


def facts(device: str, commit: str | None = None) -> dict[str, Any]:
    """What belongs beside every number; the commit is that of the checkout where none is given."""
    here = {"isa": native.isa(), "cores": available_cores(), "cache_bytes": last_level_cache(), "load": load()}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or _commit(),
        "machine": {**machine(torch.device(device)), **here},
        "versions": versions(_PACKAGES),
    }


def load() -> list[float] | None:
    """Processes that wanted the processor in the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def last_level_cache() -> int:
    """Bytes of the largest cache of the first processor; 0 where the system does not say."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=0)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit() -> str | None:
    """The checkout's commit, "-dirty" where tracked files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a file, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
