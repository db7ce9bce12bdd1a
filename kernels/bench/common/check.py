"""Whether a kernel computes what it should, before anything of it is timed.

Errors are relative, in the 2-norm, against float64 of the checkpoint's numbers: ||out - ref|| / ||ref||. A fixed
tolerance per element would fail for many inputs, even for kernels that are right.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

import torch
from torch import Tensor

from llmquant.kernels.bench.common.weights import Weight, reference

#: Of a result in 16 bits: its rounding, and that of a weight made dense.
ROUNDED = {torch.float32: 4e-3, torch.bfloat16: 4e-3, torch.float16: 1e-3}


class Checked(Protocol):
    """What is asked of a kernel here; `contender.Kernel` says more."""

    def call(self, x: Tensor, prepared: Any) -> Tensor: ...
    def limit(self, dtype: torch.dtype) -> float: ...


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        error: relative, in the 2-norm; None where it is no number.
        problem: in words; None if all is well.
    """

    error: float | None
    problem: str | None


def judge(kernel: Checked, weight: Weight, prepared: Any, x: Tensor, twice: bool) -> Verdict:
    """Run a kernel into memory that held NaN, and compare.

    Args:
        kernel: whose it is.
        weight: what it multiplies with.
        prepared: that weight, as the kernel wants it.
        x: (m, k).
        twice: whether a second run must give the same bits.
    """
    n = weight.shape.n
    out = _poisoned(kernel, x, prepared, n)
    if out.shape != (x.shape[0], n):
        return Verdict(None, f"the result is {list(out.shape)}, not {[x.shape[0], n]}")
    wanted = reference(x, weight)
    error = float((wanted.part(out).double() - wanted.values).norm() / wanted.values.norm().clamp_min(1e-300))
    finite = error if isfinite(error) else None
    if not bool(torch.isfinite(out).all()):
        return Verdict(finite, "not every element was written, or some are not finite")
    limit = kernel.limit(out.dtype)
    if not error <= limit:
        return Verdict(finite, f"error {error:.2e}, more than {limit:.0e}")
    if twice and not torch.equal(_poisoned(kernel, x, prepared, n), out):
        return Verdict(finite, "two runs differ")
    return Verdict(finite, None)


def _poisoned(kernel: Checked, x: Tensor, prepared: Any, n: int) -> Tensor:
    # The allocator gives the memory that was freed last to the next tensor of that size.
    x.new_full((x.shape[0], n), torch.nan)
    return kernel.call(x, prepared)
