"""Products by dense weights, and dense weights alone: for many rows, for gradients, for what no kernel runs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from llmquant.kernels.gpu.choose.config import Config
from llmquant.kernels.gpu.compiling import options, target, triton_dtype
from llmquant.kernels.gpu.weight import TILE_N, Format
from llmquant.kernels.product import Product

_TILE = Config(0, TILE_N, stages=1)  # of dense.py
_BYTES = 64 << 20  # of a dense piece of a weight


def linear_dense(x: Tensor, product: Product, out_dtype: torch.dtype) -> list[Tensor]:
    """Multiply with dense weights, made piece by piece so that a piece stays small.

    Until the results are cast to `out_dtype`, everything is rounded to the dtype of x (m, in_features). The product is
    checked by the caller, its norm applied, and its residual (m, out_features).
    """
    weights, biases, out_features, _, _, _, residual, silu, form = product
    has = Format.read(form)
    outs = []
    step = max(TILE_N, _BYTES // (has.in_features * x.element_size()) // TILE_N * TILE_N)
    for part, (weight, n) in enumerate(zip(weights, out_features, strict=True)):
        out = x.new_empty((x.shape[0], n))
        for first in range(0, n, step):
            count = min(step, n - first)
            torch.mm(x, dense(weight, has, n, x.dtype, first, count).t(), out=out[:, first : first + count])
        outs.append(out.add_(biases[part]) if biases else out)
    if silu:
        outs = [functional.silu(outs[0], inplace=True).mul_(outs[1])]
    if residual is not None:
        outs[0].add_(residual)
    return [out.to(out_dtype) for out in outs]


def dense(
    weight: Tensor, has: Format, out_features: int, dtype: torch.dtype, first: int = 0, count: int | None = None
) -> Tensor:
    """Rows of the dense weight (count, in_features): the bits that the definition gives for the checkpoint's tensors.

    `first` is a multiple of 64; a `count` of None takes all rows from there.
    """
    from llmquant.kernels.gpu.triton.dense import dequantize_tile

    if weight.is_cuda and weight.device.index != torch.cuda.current_device():
        with torch.cuda.device(weight.device):
            return dense(weight, has, out_features, dtype, first, count)
    count = out_features - first if count is None else count
    where = target()
    out = torch.empty(count, has.in_features, dtype=dtype, device=weight.device)
    dequantize_tile[(-(-count // TILE_N), has.tiles_k)](
        weight,
        out,
        out_features,
        has.in_features,
        first,
        count,
        BITS=has.word_bits,
        UNIT=has.unit,
        ASYMMETRIC=has.asymmetric,
        SCALE=triton_dtype(has.scale_dtype),
        DTYPE=triton_dtype(dtype),
        ASM=where.asm,
        **options(_TILE, where),
    )
    return out
