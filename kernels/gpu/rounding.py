"""`ops.round_block` in Triton: all inputs of a block in one launch, without a word from the host in between."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llmquant.kernels.gpu.choose.config import Config
from llmquant.kernels.gpu.compiling import options, target, triton_dtype
from llmquant.kernels.ops.round_block import Columns

_OUT = 16  # outputs of a program: its targets are 64 registers of one warp, which needs no barrier between inputs


def round_block(
    targets: Tensor, errors: Tensor, inner: Tensor, groups: Tensor, columns: Columns, codes: Tensor
) -> None:
    """See `ops.round_block.round_block`, whose bits it gives; all tensors are contiguous and on one device."""
    from llmquant.kernels.gpu.triton.round_block import round_block as kernel

    inputs, outputs = targets.shape
    zeros = columns.scales if columns.zeros is None else columns.zeros
    grid = (-(-outputs // _OUT),)
    kernel[grid](
        targets, errors, inner.t().contiguous(), groups, columns.scales, zeros, codes, inputs, outputs,
        **_constants(inputs, columns),
    )  # fmt: skip


def _constants(inputs: int, columns: Columns) -> dict[str, Any]:
    return {
        "LOW": float(columns.code_min),
        "HIGH": float(columns.code_max),
        "ASYMMETRIC": columns.zeros is not None,
        "DTYPE": triton_dtype(columns.dtype),
        "BLOCK": 1 << max(inputs - 1, 15).bit_length(),
        "OUT": _OUT,
        **options(Config(0, 0, warps=1, stages=1), target(), fused=False),
    }
