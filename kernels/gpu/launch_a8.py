"""From tensors to launches of the kernels in linear_a8.py; activations.py quantizes x for them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.gpu.activations import quantized_blocks, quantized_rows
from llmquant.kernels.gpu.choose import dispatch
from llmquant.kernels.gpu.choose.config import Config
from llmquant.kernels.gpu.compiling import Parts, Target, constants, options, parts_of, target
from llmquant.kernels.gpu.weight import TILE_K, Format
from llmquant.kernels.gpu.work import question, share_work, split_work
from llmquant.kernels.product import Product


def linear_w4a8(
    x: Tensor, product: Product, *, config: Config | None = None, out_dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Prepared weights of at most 4 bits times x in 8 bits, with one scale for each row and block of inputs.

    A block is the unit of the weight's scales, or 128 inputs, whichever is smaller. The relative error on Gaussian
    inputs is 5.4e-3, 5.9e-3 and 6.5e-3 for blocks of 32, 64 and 128; with every 97th input 30 times as large it is
    1.2e-2, 1.7e-2 and 2.3e-2. A block with NaN or infinity makes its row NaN.

    The inputs of x (m, in_features) are contiguous; the product is checked by the caller, its norm applied, and its
    residual (m, out_features).
    """
    from llmquant.kernels.gpu.triton.linear_a8 import linear_w4a8 as kernel

    has, m = Format.read(product.form), x.shape[0]
    if config is None:
        asked = question("w4a8", x.device, max(m, 1), sum(product.out_features), has.in_features, has.unit)
        config = dispatch.choose(**asked)
    if m == 0:
        return product.empty(x, out_dtype)
    codes, steps, sums = quantized_blocks(x, has, config)
    work = share_work(x, product, config, out_dtype or x.dtype)
    kernel[work.grid](
        *(codes, steps, sums),
        *work.tensors,
        *(m, codes.shape[0], has.tiles_k),
        *work.sizes,
        **_compile_time_w4a8(has, config, parts_of(product), target()),
    )
    return work.outs


@lru_cache(maxsize=4096)
def _compile_time_w4a8(has: Format, config: Config, parts: Parts, where: Target) -> dict[str, Any]:
    """Everything that the compiler sees; kept, since each call of a layer asks."""
    return {**constants(has, config, parts, where), **options(config, where)}


def linear_w8a8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    input_scale: Tensor | None = None,
    *,
    config: Config | None = None,
) -> Tensor:
    """The op `llmquant::linear_w8a8`, with the bits of its reference and its arguments (kernels/ops/linear_w8a8.py).

    `config` says how to cut the work; dispatch.py chooses where it is None.
    """
    from llmquant.kernels.gpu.triton.linear_a8 import linear_w8a8 as kernel

    n, in_features = weight.shape
    out = x.new_empty((*x.shape[:-1], n))
    if not out.numel():
        return out
    m = out.numel() // n
    rows = x.reshape(m, in_features)
    if config is None:
        config = dispatch.choose(**question("w8a8", x.device, m, n, in_features, 0))
    codes, steps = quantized_rows(rows if rows.stride(-1) == 1 else rows.contiguous(), input_scale, config)
    grid, partials, arrivals = split_work(rows, config, [n], False, torch.int32)
    kernel[grid](
        codes,
        steps,
        weight.contiguous(),
        scale.contiguous(),
        x if bias is None else bias.contiguous(),
        out,
        partials,
        arrivals,
        m,
        n,
        in_features,
        **_compile_time_w8a8(in_features, config, bias is not None, target()),
    )
    return out


@lru_cache(maxsize=4096)
def _compile_time_w8a8(in_features: int, config: Config, bias: bool, where: Target) -> dict[str, Any]:
    return {
        "BIAS": bias,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "SPLIT_K": config.split_k,
        "EVEN_K": in_features % TILE_K == 0,
        "PDL": where.overlaps(config),
        **options(config, where, fused=False),
    }
