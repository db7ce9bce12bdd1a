"""Whether a kernel computes what it should, before anything of it is timed.

Errors are relative, in the 2-norm, against float64 of the checkpoint's numbers: ||out - ref|| / ||ref||. A fixed
tolerance per element would fail for many inputs, even for kernels that are right.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.bench.gpu_kernel import OURS, Kernel
from llmquant.kernels.bench.gpu_weights import Reference

#: What the order of float32 sums may add, before the result is rounded.
EXACT = 2e-6
#: Beyond this it is no longer a matter of sums, and a kernel counts as wrong.
WRONG = 2e-5
#: Of a result in 16 bits: its rounding, and that of a weight made dense.
ROUNDED = {torch.float32: 4e-3, torch.bfloat16: 4e-3, torch.float16: 1e-3}
#: Of W4A8, by the rounding of activations: 6e-3 for Gaussian ones in blocks of 128. Outliers would hide errors.
FAST = 1e-2
_PEER_WRONG = 0.1  # of a peer: beyond any choice of how to round


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        error: relative, in the 2-norm.
        problem: in words; None if all is well.
    """

    error: float
    problem: str | None


def judge(kernel: Kernel, x: Tensor, prepared: Any, n: int, wanted: Reference) -> Verdict:
    """Run a kernel into memory that held NaN, twice, and compare.

    Args:
        kernel: whose it is; others' need not give the same bits twice, and may round as they like.
        x: (m, k).
        prepared: its weight.
        n: outputs of the weight.
        wanted: what the product should be.
    """
    ours = kernel.owner == OURS
    out = _poisoned(kernel, x, prepared, n)
    if out.shape != (x.shape[0], n):
        return Verdict(inf, f"the result is {list(out.shape)}")
    error = relative(wanted.part(out), wanted.values)
    if not bool(torch.isfinite(out).all()):
        return Verdict(error, "not every element was written, or some are not finite")
    limit = limit_of(kernel, out.dtype) if ours else _PEER_WRONG
    if not error <= limit and not kernel.requantizes:
        return Verdict(error, f"error {error:.2e}, more than {limit:.0e}")
    if ours and not torch.equal(_poisoned(kernel, x, prepared, n), out):
        return Verdict(error, "two runs differ")
    return Verdict(error, None)


def limit_of(kernel: Kernel, dtype: torch.dtype) -> float:
    """The error that one of ours may have in a result of some dtype."""
    return FAST if kernel.form.startswith("W4A8") else ROUNDED[dtype]


def relative(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||, in float64."""
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-300))


def guarded(m: int, k: int, dtype: torch.dtype, device: str, outliers: bool = False) -> Tensor:
    """Random rows (m, k) that lie between NaN: a kernel that reads beyond them shows it.

    Args:
        m: rows.
        k: columns.
        dtype: of the result.
        device: where.
        outliers: whether some columns are 30 times as large.
    """
    around = torch.full((m + 2, k), torch.nan, dtype=dtype, device=device)
    x = torch.randn(m, k, device=device)
    if outliers:
        x[:, :: max(1, k // 8)] *= 30
    around[1:-1] = x.to(dtype)
    return around[1:-1]


def _poisoned(kernel: Kernel, x: Tensor, prepared: Any, n: int) -> Tensor:
    # The allocator gives the memory that was freed last to the next tensor of that size.
    x.new_full((x.shape[0], n), torch.nan)
    return kernel.call(x, prepared)
