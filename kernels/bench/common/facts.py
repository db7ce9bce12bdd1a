"""Facts about machine and software, without which a time means nothing, and files of results."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from llmquant.kernels.bench.common.plan import available_cores, last_level_cache
from llmquant.kernels.cpu import native
from llmquant.machine import NOT_INSTALLED, machine, versions

_PACKAGES = (
    "llmquant", "torch", "triton", "transformers", "numpy", "onnxruntime", "llama-cpp-python", "humming-kernels",
)  # fmt: skip


def facts(device: str = "cpu", commit: str | None = None) -> dict[str, Any]:
    """Date, commit, machine and versions, without which a time means nothing."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or _commit(),
        "machine": {
            **machine(torch.device(device)), "isa": native.isa(), "cores": available_cores(),
            "cache_bytes": last_level_cache(), "load": load(),
        },
        "versions": {name: found for name, found in versions(_PACKAGES).items() if found != NOT_INSTALLED},
    }  # fmt: skip


def load() -> list[float] | None:
    """Processes that wanted the processor in the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


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
