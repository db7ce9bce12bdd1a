"""What takes part in the CPU benchmark: one kernel with enough distinct weights to stay out of the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Call = Callable[[], object]

#: Kernels that share one pool of spinning threads; between two pools the clock waits until the last one sleeps.
OPENMP, ONNXRUNTIME = "openmp", "onnxruntime"


@dataclass(frozen=True)
class Shape:
    """A weight (n outputs, k inputs)."""

    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.n}x{self.k}"


@dataclass(frozen=True)
class Contender:
    """One kernel with its weights.

    Attributes:
        kernel: whose it is, such as "llmquant" or "onnxruntime".
        scheme: the weight's format, in the words of its owner.
        mode: what becomes of the activations: "fast" and "exact" of ours, "fp32", "bf16", "int8" of others.
        weight_bytes: bytes of one weight: codes, scales and zeros.
        bind: from a number of rows to one call per copy of the weight, all on one random input.
        error: from a number of rows to the relative error (Frobenius) against float64 of the dequantized weight.
        pool: whose threads it runs on.
    """

    kernel: str
    scheme: str
    mode: str
    weight_bytes: int
    bind: Callable[[int], list[Call]]
    error: Callable[[int], float] | None = None
    pool: str = OPENMP

    @property
    def name(self) -> str:
        """For tables and messages."""
        return (
            f"{self.kernel} {self.scheme}" if self.mode == self.scheme else f"{self.kernel} {self.scheme} {self.mode}"
        )


def copies(rotate_bytes: int, weight_bytes: int) -> int:
    """How many weights are needed for `rotate_bytes`; two at least, so that no call repeats the one before."""
    return max(2, -(-rotate_bytes // weight_bytes))
