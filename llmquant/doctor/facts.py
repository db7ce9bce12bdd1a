"""Our kernels on this machine: the C++ library, and what runs on each GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from llmquant.errors import LlmquantError
from llmquant.kernels.cpu import native
from llmquant.kernels.cpu.native import ISA_VARIABLE, KERNELS_VARIABLE
from llmquant.kernels.gpu import runtime
from llmquant.kernels.gpu.choose import table

_NVIDIA = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The C++ kernels of this machine."""

    library: str | None  # file name; None where llmquant was installed without it, or it cannot be used
    interface: int  # version of its interface that this llmquant speaks
    in_use: str | None  # instruction set that runs; "torch" without the library, None if there is a problem
    available: tuple[str, ...]  # instruction sets that both library and processor have, narrowest first
    isa_override: str | None  # value of LLMQUANT_CPU_ISA
    kernels_override: str | None  # value of LLMQUANT_CPU_KERNELS
    problem: str | None  # what makes every use of the kernels fail


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU that torch can use, and the Triton kernels on it.

    `table` is where their measured configurations come from: "own" (`llmquant bench --tune`) or "shipped"; None if
    there are none, and an estimate decides.
    """

    name: str
    bytes: int  # of its memory
    arch: str  # what the kernels are compiled for, such as "sm90"; empty where a problem hides it
    off: str | None  # why they do not run; None if they do
    table: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """All GPUs."""

    devices: tuple[Gpu, ...]  # those that torch can use
    driver: bool  # whether an NVIDIA driver is loaded
    cuda: str | None  # the version torch was built for
    override: str | None  # value of LLMQUANT_GPU_KERNELS
    problem: str | None  # what makes every use of the kernels fail


def kernels() -> Kernels:
    """Look at the library; a mistake in it or in the environment becomes `problem`."""
    library, in_use, available, problem = None, None, (), None
    try:
        loaded = native.library()
        library = Path(loaded._name).name if loaded is not None else None
        available = native.supported()
        in_use = native.isa()
        native.wanted()
    except LlmquantError as error:
        problem = str(error)
    return Kernels(
        library=library, interface=native.ABI, in_use=in_use, available=available, problem=problem,
        isa_override=os.environ.get(ISA_VARIABLE) or None, kernels_override=os.environ.get(KERNELS_VARIABLE) or None,
    )  # fmt: skip


def gpus() -> Gpus:
    """Ask torch for GPUs; a mistake in the environment or in a table becomes `problem`."""
    devices, problem = [], None
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device, properties = torch.device("cuda", number), torch.cuda.get_device_properties(number)
        try:
            arch, off = runtime.arch(device), runtime.why_off(device)
            source = _table(arch, properties.multi_processor_count)
        except LlmquantError as error:
            arch, off, source = "", str(error), None
            problem = off
        name, size = torch.cuda.get_device_name(number), properties.total_memory
        devices.append(Gpu(name=name, bytes=size, arch=arch, off=off, table=source))
    try:
        runtime.interpreting()  # asked of every layer, with a GPU or without
    except LlmquantError as error:
        problem = str(error)
    return Gpus(
        devices=tuple(devices), driver=_NVIDIA.exists(), cuda=torch.version.cuda, problem=problem,
        override=os.environ.get(runtime.VARIABLE) or None,
    )  # fmt: skip


def _table(arch: str, processors: int) -> str | None:
    for source, file in (("own", table.user_file(arch, processors)), ("shipped", table.shipped_file(arch))):
        if file.is_file() and table.read(file).entries:
            return source
    return None
