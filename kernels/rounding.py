"""Rounding of one block of inputs by GPTQ, on whatever is fastest where the weight lies; all give the same bits."""

from __future__ import annotations

from torch import Tensor

from llmquant.kernels.cpu import native
from llmquant.kernels.cpu import rounding as cpu
from llmquant.kernels.gpu import rounding as gpu
from llmquant.kernels.gpu import runtime
from llmquant.kernels.ops import round_block as definition
from llmquant.kernels.ops.round_block import Columns


def round_block(
    targets: Tensor, errors: Tensor, inner: Tensor, groups: Tensor, columns: Columns, codes: Tensor
) -> None:
    """See `ops.round_block.round_block`."""
    if runtime.why_off(targets.device) is None:
        run = gpu.round_block
    elif targets.is_cpu and native.wanted():
        run = cpu.round_block
    else:
        run = definition.round_block
    run(targets, errors, inner, groups, columns, codes)
