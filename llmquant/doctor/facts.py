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
    """The C++ kernels of this machine.

    Attributes:
        library: file name of the library; None where llmquant was installed without it, or it cannot be used.
        interface: version of its interface that this llmquant speaks.
        in_use: instruction set that runs; "torch" without the library, None if there is a problem.
        available: instruction sets that both library and processor have, narrowest first.
        isa_override: value of LLMQUANT_CPU_ISA.
        kernels_override: value of LLMQUANT_CPU_KERNELS.
        problem: what makes every use of the kernels fail.
    """

    library: str | None
    interface: int
    in_use: str | None
    available: tuple[str, ...]
    isa_override: str | None
    kernels_override: str | None
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU that torch can use, and the Triton kernels on it.

    Attributes:
        name: of the product.
        bytes: of its memory.
        arch: what the kernels are compiled for, such as "sm90"; empty where a problem hides it.
        off: why they do not run; None if they do.
        table: where their measured configurations come from: "own" (`llmquant bench --tune`) or "shipped"; None if
            there are none, and an estimate decides.
    """

    name: str
    bytes: int
    arch: str
    off: str | None
    table: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """All GPUs.

    Attributes:
        devices: those that torch can use.
        driver: whether an NVIDIA driver is loaded.
        cuda: the CUDA version torch was built for.
        override: value of LLMQUANT_GPU_KERNELS.
        problem: what makes every use of the kernels fail.
    """

    devices: tuple[Gpu, ...]
    driver: bool
    cuda: str | None
    override: str | None
    problem: str | None


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
        properties = torch.cuda.get_device_properties(number)
        try:
            arch, off, source = _kernels_on(torch.device("cuda", number), properties.multi_processor_count)
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


def _kernels_on(device: torch.device, processors: int) -> tuple[str, str | None, str | None]:
    """Fields of `Gpu`: arch, off, table."""
    arch = runtime.arch(device)
    return arch, runtime.why_off(device), _table(arch, processors)


def _table(arch: str, processors: int) -> str | None:
    for source, file in (("own", table.user_file(arch, processors)), ("shipped", table.shipped_file(arch))):
        if file.is_file() and table.read(file).entries:
            return source
    return None
