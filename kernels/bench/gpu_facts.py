"""What the GPU is, as far as torch and nvidia-smi tell; nothing is ever set."""

from __future__ import annotations

import subprocess
from typing import Any

import torch

#: Beside those that machine.py looks for.
PACKAGES = ("torch", "triton", "llmquant", "humming-kernels", "gemlite", "bitsandbytes", "transformers", "numpy")
_ASKED = (
    "name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw", "power.limit",
    "temperature.gpu",
)  # fmt: skip


def facts() -> dict[str, Any] | None:
    """The current GPU; None if there is none."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
    }


def clocks() -> dict[str, str] | None:
    """Clocks, power and temperature now, in nvidia-smi's words; None if it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(_ASKED, values, strict=True)) if len(values) == len(_ASKED) else None
