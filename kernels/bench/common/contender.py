"""What takes part: one kernel with enough copies of a weight to stay out of the cache, ours and the peers' alike.

Whether it computes what it should is checked before anything of it is timed. Errors are relative, in the 2-norm,
against float64 of the checkpoint's numbers: ||out - ref|| / ||ref||. A fixed tolerance per element would fail for many
inputs, even for kernels that are right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmquant.kernels.bench.common.weights import Shape, Weight, cloned, copies, relative_error

Call = Callable[[], object]
OURS, DENSE = "llmquant", "torch dense"
#: Kernels that share one pool of spinning threads; between two pools the clock waits until the last one sleeps.
OPENMP, ONNXRUNTIME = "openmp", "onnxruntime"
#: The relative error of a result in a dtype: its rounding, and that of a weight made dense.
ROUNDED = {torch.float32: 4e-3, torch.bfloat16: 4e-3, torch.float16: 1e-3}


class DeadContextError(RuntimeError):
    """The GPU refuses this process from now on."""


def said(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


class Verdict(NamedTuple):
    """What a check found: the relative error, None where it is no number; and what is wrong, None if all is well."""

    error: float | None
    problem: str | None


@dataclass(frozen=True)
class Contender:
    """One kernel with its weights."""

    kernel: str  # whose it is, such as "llmquant" or "onnxruntime"
    scheme: str  # the weight's format, in the words of its owner
    mode: str  # what becomes of the activations: "fast" and "exact" of ours, "fp32", "bf16", "int8" of others
    weight_bytes: int  # of one weight: codes, scales and zeros
    #: From a number of rows to one call per copy of the weight, all on one random input; raises where it cannot.
    bind: Callable[[int], list[Call]]
    #: From a number of rows to whether its result is right; None if it has a weight of its own.
    check: Callable[[int], Verdict] | None = None
    pool: str = OPENMP  # whose threads it runs on

    @property
    def name(self) -> str:
        """For tables, and as a key."""
        words = [self.kernel, self.scheme]
        return " ".join(words if self.mode == self.scheme else [*words, self.mode])


class Kernel(ABC):
    """A way to compute `x @ weight.T` for weights of ours; owner ("marlin") and mode as in `Contender`."""

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
    """A kernel for activations of a dtype, with copies of a weight, made when they are first needed.

    All copies together have `rotate_bytes`; 0 is for a single one.
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

    def calls(self, rows: int) -> list[Call]:
        x = self._x(rows)
        return [partial(self._kernel.call, x, one) for one in self._copies]

    def check(self, rows: int) -> Verdict:
        """Run into memory that held NaN, and compare; ours twice, which must give the same bits."""
        (n, k), shape = self._kernel.multiples, self._weight.shape
        if shape.n % n or shape.k % k:
            raise ValueError(f"{shape} is no multiple of {Shape(n, k)}")
        if rows < self._kernel.least_rows:
            raise ValueError(f"it wants at least {self._kernel.least_rows} rows")
        x = self._x(rows)
        out = self._poisoned(x)
        if out.shape != (rows, shape.n):
            return Verdict(None, f"the result is {list(out.shape)}, not {[rows, shape.n]}")
        error = relative_error(out, x, self._weight)
        finite = error if isfinite(error) else None
        if not bool(torch.isfinite(out).all()):
            return Verdict(finite, "not every element was written, or some are not finite")
        limit = self._kernel.limit(out.dtype)
        if not error <= limit:
            return Verdict(finite, f"error {error:.2e}, more than {limit:.0e}")
        if self._kernel.owner == OURS and not torch.equal(self._poisoned(x), out):
            return Verdict(finite, "two runs differ")
        return Verdict(finite, None)

    def _poisoned(self, x: Tensor) -> Tensor:
        # The allocator gives the memory that was freed last to the next tensor of that size.
        x.new_full((x.shape[0], self._weight.shape.n), torch.nan)
        return self._kernel.call(x, self._first)

    def _x(self, rows: int) -> Tensor:
        device = self._weight.packed.device
        generator = torch.Generator(device).manual_seed(rows)
        return torch.randn(rows, self._weight.shape.k, generator=generator, device=device).to(self._dtype)
