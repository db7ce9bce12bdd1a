"""The relative error of a quantized layer, measured on its inputs.

Legend: W weight (O, I), Q its quantized form, D = Q - W, H Hessian (I, I) = X^T X / tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from llmquant.numerics.quantized import QuantizedTensor

_CHUNK = 1 << 21


def relative_loss(
    weight: Float[Tensor, "out in"],
    quantized: QuantizedTensor,
    hessian: Float32[Tensor, "in in"] | None,
    known: float | None = None,
) -> float:
    """tr(D H D^T) / tr(W H W^T), or |D|^2 / |W|^2 without a Hessian, of the weight as it dequantizes.

    0 for an exact result, also where the layer puts out nothing at all. `known` is the numerator, if that is known.
    """
    step = max(1, _CHUNK // weight.shape[1])
    lost = torch.zeros((), dtype=torch.float64, device=weight.device)
    power = torch.zeros_like(lost)
    for begin in range(0, weight.shape[0], step):
        rows = slice(begin, begin + step)
        values = weight[rows].float()
        power += _power(values, hessian)
        if known is not None:
            continue
        part = QuantizedTensor(
            quantized.codes[rows],
            quantized.scales if quantized.scales.shape[0] == 1 else quantized.scales[rows],
            quantized.zeros if quantized.zeros is None or quantized.zeros.shape[0] == 1 else quantized.zeros[rows],
        )
        lost += _power(part.dequantize().float() - values, hessian)
    if known is not None:
        lost += known
    if lost <= 0:
        return 0.0
    return (lost / power).item() if power > 0 else float("inf")


def _power(rows: Float32[Tensor, "rows in"], hessian: Float32[Tensor, "in in"] | None) -> Float64[Tensor, ""]:
    """tr(R H R^T) in float64, or |R|^2."""
    weighed = rows * rows if hessian is None else (rows @ hessian).mul_(rows)
    # Rows in float32 first: a float64 sum over all elements costs more than the rounding it measures.
    return weighed.sum(-1).sum(dtype=torch.float64)
