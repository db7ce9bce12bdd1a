"""GPTQ inside one block of inputs: what `llmquant.kernels.rounding.round_block` means, in plain torch.

Every product and every sum is rounded on its own, in one order, so that kernels can give the same bits: none may use a
fused multiply-add.

Legend: B inputs of the block, O outputs, G rows of scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int8, Int64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Columns:
    """The grid of a weight, by inputs.

    Attributes:
        scales: values of `dtype`, in float32; never 0.
        zeros: None where all are 0.
        code_min: the lowest code.
        code_max: the highest.
        dtype: in which a reader multiplies a code with its scale.
    """

    scales: Float32[Tensor, "groups out"]
    zeros: Float32[Tensor, "groups out"] | None
    code_min: int
    code_max: int
    dtype: torch.dtype


@torch.no_grad()
def round_block(
    targets: Float32[Tensor, "block out"],
    errors: Float32[Tensor, "block out"],
    inner: Float32[Tensor, "block block"],
    groups: Int64[Tensor, " block"],
    columns: Columns,
    codes: Int8[Tensor, "block out"],
) -> None:
    """Round the inputs of a block from the last to the first.

    Args:
        targets: the weight and what earlier blocks ask of it. Becomes what rounding missed of the weight and all that
            was asked of it, by earlier blocks and in this one.
        errors: the weight. Becomes the weight minus its rounded value.
        inner: what an error of input k asks of input j < k is `inner[j, k]` times it; the rest is not read.
        groups: the row of the scales of each input.
        columns: the grid.
        codes: written.
    """
    which = groups.tolist()
    for j in range(len(which) - 1, -1, -1):
        target, scale = targets[j], columns.scales[which[j]]
        steps = (target / scale).round_()
        if columns.zeros is None:
            codes[j] = steps.clamp_(columns.code_min, columns.code_max)
        else:
            zero = columns.zeros[which[j]]
            codes[j] = steps.add_(zero).clamp_(columns.code_min, columns.code_max)
            steps.sub_(zero)
        values = steps.mul_(scale).to(columns.dtype).float()
        errors[j] -= values
        targets[j] -= values
        targets[:j] += inner[:j, j].unsqueeze(1) * errors[j]
