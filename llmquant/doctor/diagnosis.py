"""`diagnose`: all facts, the bandwidth, the decode speed that follows, and advice."""

from __future__ import annotations

from dataclasses import dataclass

from llmquant.doctor.advice import Advice, advise
from llmquant.doctor.bandwidth import Bandwidth, measure_bandwidth
from llmquant.doctor.facts import Gpus, Kernels, gpus, kernels
from llmquant.machine import VERSIONED, Threads, cpu_name, system_name, threads, versions
from llmquant.memory import Memory, memory
from llmquant.spec import Scheme

SIZES = (1e9, 3e9, 8e9)
FORMATS = ("bf16", "int8", "int4-g128")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What memory allows a dense model of that many parameters in that format."""

    parameters: float  # weights, all of them in the format
    format: str  # bf16 or a scheme
    bytes: int  # of the weights
    tokens_per_second: float  # bandwidth / bytes: decoding one sequence is never faster
    fits: bool | None  # whether the weights fit into the memory that is free now; None if that is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Result of `diagnose`; the fields are the keys of the JSON output, with no host or user names."""

    cpu: str
    system: str
    versions: dict[str, str]
    kernels: Kernels
    threads: Threads
    memory: Memory
    gpus: Gpus
    bandwidth: Bandwidth
    expected: tuple[Expected, ...]
    advice: tuple[Advice, ...]

    @property
    def broken(self) -> bool:
        """Whether something makes the kernels fail, not only slow."""
        return any(each.level == "error" for each in self.advice)


def diagnose() -> Diagnosis:
    """Collect facts and measure the bandwidth; takes about a second."""
    found_kernels, found_threads, found_memory, found_gpus = kernels(), threads(), memory(), gpus()
    packages = versions((*VERSIONED, "compressed-tensors", "triton"))
    works = found_kernels.library is not None and found_kernels.problem is None
    bandwidth = measure_bandwidth(found_threads.torch, compiled=works)
    return Diagnosis(
        cpu=cpu_name(),
        system=system_name(),
        versions=packages,
        kernels=found_kernels,
        threads=found_threads,
        memory=found_memory,
        gpus=found_gpus,
        bandwidth=bandwidth,
        expected=tuple(
            expected(size, name, bandwidth.best, found_memory.available) for size in SIZES for name in FORMATS
        ),
        advice=advise(found_kernels, found_threads, found_memory, found_gpus, bandwidth, packages),
    )


def expected(parameters: float, name: str, gbs: float, available: int | None) -> Expected:
    """The decode speed that `gbs` GB/s allow in "bf16" or a symmetric scheme, whose scales have 16 bits."""
    size = int(parameters * _bits_per_weight(name) / 8)
    return Expected(
        parameters=parameters, format=name, bytes=size, tokens_per_second=gbs * 1e9 / size,
        fits=None if available is None else size < available,
    )  # fmt: skip


def _bits_per_weight(name: str) -> float:
    """Bits of a weight with its share of the group's scale; that of a whole row is too small to count."""
    if name == "bf16":
        return 16.0
    scheme = Scheme.parse(name)
    return scheme.bits + (16 / scheme.group_size if scheme.group_size else 0)
