"""What takes part: one kernel with enough copies of a weight to stay out of the cache, ours and the peers' alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.bench.common.check import Verdict, judge
from llmquant.kernels.bench.common.weights import Shape, Weight, cloned, copies

Call = Callable[[], object]
OURS, DENSE = "llmquant", "torch dense"
#: Kernels that share one pool of spinning threads; between two pools the clock waits until the last one sleeps.
OPENMP, ONNXRUNTIME = "openmp", "onnxruntime"


@dataclass(frozen=True)
class Contender:
    """One kernel with its weights.

    Attributes:
        kernel: whose it is, such as "llmquant" or "onnxruntime".
        scheme: the weight's format, in the words of its owner.
        mode: what becomes of the activations: "fast" and "exact" of ours, "fp32", "bf16", "int8" of others.
        weight_bytes: bytes of one weight: codes, scales and zeros.
        bind: from a number of rows to one call per copy of the weight, all on one random input; raises where it cannot.
        check: from a number of rows to whether its result is right; None if it has a weight of its own.
        pool: whose threads it runs on.
    """

    kernel: str
    scheme: str
    mode: str
    weight_bytes: int
    bind: Callable[[int], list[Call]]
    check: Callable[[int], Verdict] | None = None
    pool: str = OPENMP

    @property
    def name(self) -> str:
        """For tables, and as a key."""
        words = [self.kernel, self.scheme]
        return " ".join(words if self.mode == self.scheme else [*words, self.mode])


class Kernel(ABC):
    """A way to compute `x @ weight.T` for weights of ours.

    Args:
        owner: whose it is, such as "llmquant" or "marlin".
        mode: as in `Contender`.
    """

    #: Of outputs and inputs, that it takes without padding them first; and the fewest rows.
    multiples, least_rows = (1, 1), 1

    def __init__(self, owner: str, mode: str) -> None:
        self.owner, self.mode = owner, mode

    @abstractmethod
    def prepare(self, weight: Weight) -> Any:
        """The tensors that `call` needs, alone or in tuples; the copies that are called in turn are clones of them."""

    @abstractmethod
    def call(self, x: Tensor, prepared: Any) -> Tensor:
        """`x` (m, k) to (m, n)."""

    def limit(self, dtype: torch.dtype) -> float:  # noqa: ARG002 - some depend on it
        """The relative error, beyond which a result of some dtype is wrong; of a peer, beyond any choice to round."""
        return 0.1


def contender(kernel: Kernel, weight: Weight, rotate_bytes: int, dtype: torch.dtype) -> Contender:
    """A kernel with a weight; copies are made when they are first needed.

    Args:
        kernel: which.
        weight: for it; its own format decides.
        rotate_bytes: that all copies together should have; 0 for a single copy.
        dtype: of the activations.
    """
    dense = kernel.owner == DENSE
    size = weight.shape.n * weight.shape.k * dtype.itemsize if dense else weight.nbytes
    bound = _Bound(kernel, weight, dtype, copies(rotate_bytes, size) if rotate_bytes else 1)
    scheme = kernel.mode if dense else weight.scheme.name
    return Contender(kernel.owner, scheme, kernel.mode, size, bound.calls, bound.check)


class _Bound:
    """A kernel and its copies of a weight."""

    def __init__(self, kernel: Kernel, weight: Weight, dtype: torch.dtype, count: int) -> None:
        self._kernel, self._weight, self._dtype, self._count = kernel, weight, dtype, count

    @cached_property
    def _first(self) -> Any:
        return self._kernel.prepare(self._weight)

    @cached_property
    def _copies(self) -> list[Any]:
        return [self._first, *(cloned(self._first) for _ in range(self._count - 1))]

    def check(self, rows: int) -> Verdict:
        self._require(rows)
        return judge(self._kernel, self._weight, self._first, self._x(rows), twice=self._kernel.owner == OURS)

    def calls(self, rows: int) -> list[Call]:
        x = self._x(rows)
        return [partial(self._kernel.call, x, one) for one in self._copies]

    def _x(self, rows: int) -> Tensor:
        generator = torch.Generator(self._weight.packed.device).manual_seed(rows)
        shape = (rows, self._weight.shape.k)
        return torch.randn(shape, generator=generator, device=self._weight.packed.device).to(self._dtype)

    def _require(self, rows: int) -> None:
        (n, k), shape = self._kernel.multiples, self._weight.shape
        if shape.n % n or shape.k % k:
            raise ValueError(f"{shape} is no multiple of {Shape(n, k)}")
        if rows < self._kernel.least_rows:
            raise ValueError(f"it wants at least {self._kernel.least_rows} rows")
