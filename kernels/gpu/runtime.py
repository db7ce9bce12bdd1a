"""Whether the Triton kernels can run, and where. `LLMQUANT_GPU_KERNELS` says `reference` to turn them off.

With `LLMQUANT_GPU_KERNELS=interpret` they run on the CPU, program by program, in Triton's interpreter: slow, and exact
enough to test everything but speed. Set it before triton is imported.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch

from llmquant.errors import LlmquantError

VARIABLE = "LLMQUANT_GPU_KERNELS"
_OLDEST = (8, 0)  # bf16 tensor cores and cp.async


def interpreting() -> bool:
    """Whether the kernels run in the interpreter, on the CPU."""
    value = os.environ.get(VARIABLE) or None
    if value not in (None, "reference", "interpret"):
        raise LlmquantError(f"{VARIABLE} is {value!r}; it can be 'reference', 'interpret', or not set")
    return value == "interpret"


def why_off(device: torch.device | str) -> str | None:
    """Why the kernels cannot run on a device, in words for a report; None if they can."""
    device = torch.device(device)
    if interpreting():
        return None if device.type == "cpu" else f"the interpreter runs on the CPU, not on {device.type}"
    if device.type != "cuda":
        return f"the weight is on {device.type}"
    if os.environ.get(VARIABLE) == "reference":
        return f"{VARIABLE}=reference"
    if find_spec("triton") is None:
        return "triton is not installed: pip install 'llmquant[gpu]'"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < _OLDEST:
        return f"the kernels need compute capability 8.0; {torch.cuda.get_device_name(device)} has less"
    return None


def arch(device: torch.device | str) -> str:
    """The architecture the kernels are compiled for, such as "sm90" or "gfx942"; "interpreter" if it is none."""
    return "interpreter" if interpreting() else _arch(_number(device))


def processors(device: torch.device | str) -> int:
    """Streaming multiprocessors of a GPU; a few for the interpreter."""
    return 8 if torch.device(device).type == "cpu" else _processors(_number(device))


def _number(device: torch.device | str) -> int:
    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


@cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


@cache
def _arch(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return properties.gcnArchName.partition(":")[0]
    return f"sm{properties.major}{properties.minor}"
