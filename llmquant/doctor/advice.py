"""What is wrong or slower than it could be, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from llmquant.doctor.bandwidth import Bandwidth
from llmquant.doctor.facts import Gpu, Gpus, Kernels
from llmquant.kernels.cpu.native import ISA_VARIABLE, KERNELS_VARIABLE
from llmquant.kernels.gpu import runtime
from llmquant.kernels.gpu.choose import table
from llmquant.machine import BUSY, NOT_INSTALLED, Threads
from llmquant.memory import Memory


@dataclass(frozen=True, slots=True)
class Advice:
    """One finding: an error makes the kernels fail, a warning makes them slow."""

    level: Literal["error", "warning"]
    problem: str
    remedy: str


def advise(
    kernels: Kernels, threads: Threads, memory: Memory, gpus: Gpus, bandwidth: Bandwidth, versions: Mapping[str, str]
) -> tuple[Advice, ...]:
    """Draw conclusions; the most serious first. `versions` by package, "not installed" included."""
    return (*_kernels(kernels), *_threads(threads), *_memory(memory), *_bandwidth(bandwidth), *_gpus(gpus, versions))


def _warning(problem: str, remedy: str) -> Advice:
    return Advice("warning", problem, remedy)


def _kernels(found: Kernels) -> Iterator[Advice]:
    if found.problem:
        wrong = next((name for name in (ISA_VARIABLE, KERNELS_VARIABLE) if name in found.problem), None)
        remedy = f"unset {wrong}" if wrong else "pip install --force-reinstall --no-deps llmquant"
        yield Advice("error", found.problem, remedy)
    elif found.library is None:
        yield _warning(
            "llmquant was installed without its C++ kernels (no compiler, or LLMQUANT_PURE was set), so the slow torch "
            "reference runs",
            "install a C++17 compiler, then: pip install --force-reinstall --no-deps llmquant",
        )
    elif found.isa_override and found.in_use != found.available[-1]:
        yield _warning(
            f"{ISA_VARIABLE}={found.isa_override} holds the kernels back: this machine runs {found.available[-1]}",
            f"unset {ISA_VARIABLE}, unless you compare on purpose",
        )
    elif found.in_use == "scalar":
        yield _warning(
            "this processor has none of the vector instructions the kernels are written for, so plain C++ runs",
            "use a machine with AVX2 (any x86 since about 2014) or, on ARM, NEON",
        )
    if found.kernels_override == "reference":
        yield _warning(
            f"{KERNELS_VARIABLE}=reference switches the fast kernels off",
            f"unset {KERNELS_VARIABLE}, unless you check results on purpose",
        )


def _threads(found: Threads) -> Iterator[Advice]:
    if found.torch > found.useful:
        reason = (
            f"the container grants {found.quota:g} processors"
            if found.quota and int(found.quota) <= found.useful
            else f"there are {found.useful} cores for this process"
        )
        yield _warning(
            f"torch uses {found.torch} threads, but {reason}; they take turns",
            f"export OMP_NUM_THREADS={found.useful} before starting Python",
        )
    elif found.torch < found.useful:
        yield _warning(
            f"torch uses {found.torch} of {found.useful} cores; all of them are faster",
            f"unset OMP_NUM_THREADS, or call torch.set_num_threads({found.useful})",
        )


def _bandwidth(found: Bandwidth) -> Iterator[Advice]:
    if found.others is not None and found.others > BUSY:
        yield _warning(
            f"other programs kept {found.others:.0%} of the processors busy, so the bandwidth above is what they leave",
            "run llmquant doctor again when the machine is quiet",
        )


def _memory(found: Memory) -> Iterator[Advice]:
    if found.huge_pages == "never":
        yield _warning(
            "huge pages are switched off, which costs some of the bandwidth with large weights",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        )


def _gpus(found: Gpus, versions: Mapping[str, str]) -> Iterator[Advice]:
    if found.problem:
        wrong = next((name for name in (runtime.VARIABLE, table.VARIABLE) if name in found.problem), None)
        yield Advice("error", found.problem, f"correct or unset {wrong}" if wrong else "correct or delete that file")
    elif found.driver and not found.devices:
        built = f"is built for CUDA {found.cuda}" if found.cuda else "is a CPU build"
        yield _warning(
            f"there is an NVIDIA driver, but torch {versions['torch']} {built} and sees no GPU",
            "install the torch build for your driver (pytorch.org, Get Started), and check nvidia-smi",
        )
    if found.override == "interpret":
        yield _warning(
            f"{runtime.VARIABLE}=interpret runs the GPU kernels on the CPU in Triton's interpreter, thousands of times "
            "slower",
            f"unset {runtime.VARIABLE}, unless you test the kernels",
        )
    elif found.override == "reference" and found.devices:
        yield _warning(
            f"{runtime.VARIABLE}=reference switches the GPU kernels off",
            f"unset {runtime.VARIABLE}, unless you check results on purpose",
        )
    elif found.devices and versions["triton"] == NOT_INSTALLED:
        yield _warning("there is a GPU, but no triton for its kernels", "pip install 'llmquant[gpu]'")
    elif not found.problem:
        yield from _kernels_of_gpus(found.devices)


def _kernels_of_gpus(devices: Iterable[Gpu]) -> Iterator[Advice]:
    for off in dict.fromkeys(gpu.off for gpu in devices if gpu.off):
        yield _warning(f"the torch reference runs instead of the GPU kernels: {off}", "use a newer GPU")
    for arch in dict.fromkeys(gpu.arch for gpu in devices if not gpu.off and not gpu.table):
        yield _warning(
            f"nothing was measured for GPUs like yours ({arch}), so an estimate decides how the kernels cut their work",
            "llmquant bench --tune",
        )
