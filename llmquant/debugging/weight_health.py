"""Health of one quantized weight by itself: its scales, how it uses its codes, what in it is dead."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

OUTLIER = 16.0  # times the median scale of the tensor
_CHUNK = 1 << 22  # codes that are looked at at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleHealth:
    """Scales of a weight; sizes are of finite scales that are not zero, without sign, None where there are none.

    Attributes:
        nan: how many are NaN; `infinite`, `zero` and `subnormal` (in the dtype in which they are stored) likewise.
        zero: those whose codes are not all zero, so that weights are lost.
        outliers: larger than `OUTLIER` medians.
    """

    count: int
    dtype: str
    smallest: float | None
    median: float | None
    largest: float | None
    nan: int
    infinite: int
    zero: int
    subnormal: int
    outliers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeHealth:
    """How a weight uses its codes.

    Attributes:
        used: different codes that occur, of 2^bits.
        entropy: of their histogram, in bits: what a code tells; at most its width.
        at_ends: share of codes at the smallest or largest that there is.
        dead_rows: outputs whose weights are all exactly zero; `dead_columns` inputs that no output looks at.
    """

    count: int
    used: int
    entropy: float
    at_ends: float
    dead_rows: tuple[int, ...]
    dead_columns: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightHealth:
    """One quantized weight.

    Attributes:
        shape: (out_features, in_features).
        bytes: of all its tensors in the files.
        input_scale: of static 8-bit activations.
    """

    name: str
    scheme: str
    shape: tuple[int, int]
    bytes: int
    scales: ScaleHealth
    codes: CodeHealth
    input_scale: float | None = None


def scale_health(quantized: QuantizedTensor) -> ScaleHealth:
    """Look at all scales."""
    scales = quantized.scales
    wide = scales.detach().double().abs()
    good = wide[torch.isfinite(wide) & (wide > 0)]
    median = good.median().item() if len(good) else None
    return ScaleHealth(
        count=scales.numel(),
        dtype=str(scales.dtype).removeprefix("torch."),
        smallest=good.min().item() if len(good) else None,
        median=median,
        largest=good.max().item() if len(good) else None,
        nan=int(wide.isnan().sum()),
        infinite=int(wide.isinf().sum()),
        zero=_lost(quantized),
        subnormal=int((good < torch.finfo(scales.dtype).tiny).sum()),
        outliers=int((good > OUTLIER * median).sum()) if median else 0,
    )


def _lost(quantized: QuantizedTensor) -> int:
    """Scales of zero over codes that are not."""
    rows, groups = (quantized.scales == 0).nonzero(as_tuple=True)
    if not len(rows):
        return 0
    if quantized.scales.shape[0] == 1 < quantized.codes.shape[0]:  # one for all of the tensor
        return int(bool(quantized.codes.any()))
    grouped = quantized.codes.view(quantized.codes.shape[0], quantized.scales.shape[1], -1)
    return int(grouped[rows, groups].any(-1).sum())


def code_health(quantized: QuantizedTensor, scheme: Scheme) -> CodeHealth:
    """Look at all codes, some rows at a time."""
    codes, zeros = quantized.codes, quantized.zeros
    rows, columns = codes.shape
    step = max(1, _CHUNK // columns)
    counts = torch.zeros(1 << scheme.bits, dtype=torch.int64)
    dead_rows, alive = [], torch.zeros(columns, dtype=torch.bool)
    for begin in range(0, rows, step):
        part = codes[begin : begin + step]
        counts += torch.bincount((part.int() - scheme.code_min).view(-1), minlength=len(counts))
        weights = _is_weight(part, zeros if zeros is None or len(zeros) == 1 else zeros[begin : begin + step])
        dead_rows += (~weights.any(1)).nonzero().view(-1).add(begin).tolist()
        alive |= weights.any(0)
    shares = counts[counts > 0].double() / codes.numel()
    return CodeHealth(
        count=codes.numel(),
        used=len(shares),
        entropy=max(0.0, -(shares * shares.log2()).sum().item()),
        at_ends=(counts[0] + counts[-1]).item() / codes.numel(),
        dead_rows=tuple(dead_rows),
        dead_columns=tuple((~alive).nonzero().view(-1).tolist()),
    )


def _is_weight(codes: Tensor, zeros: Tensor | None) -> Tensor:
    """(rows, columns) whether a code stands for anything but zero."""
    if zeros is None:
        return codes != 0
    return (codes.view(len(codes), zeros.shape[1], -1) != zeros.unsqueeze(-1)).view(codes.shape)
