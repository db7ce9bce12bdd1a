"""From tensors to launches of the kernels in linear_a8.py; activations.py quantizes x for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.gpu import dispatch, runtime
from llmquant.kernels.gpu.activations import exact_options, quantized_blocks, quantized_rows, target
from llmquant.kernels.gpu.config import Config
from llmquant.kernels.gpu.launch import MOST_PARTS, options, processors, split_work, triton_dtype, uses_asm
from llmquant.kernels.gpu.weight import TILE_K, Format


def linear_w4a8(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_features: Sequence[int],
    form: list[int],
    residual: Tensor | None = None,
    silu: bool = False,
    *,
    config: Config | None = None,
    out_dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Prepared weights of at most 4 bits times x in 8 bits, with one scale for each row and block of inputs.

    A block is the unit of the weight's scales, or 128 inputs, whichever is smaller. The relative error on Gaussian
    inputs is 5.4e-3, 5.9e-3 and 6.5e-3 for blocks of 32, 64 and 128; with every 97th input 30 times as large it is
    1.2e-2, 1.7e-2 and 2.3e-2. A block with NaN or infinity makes its row NaN.

    Args:
        x: (m, in_features) bfloat16, float16 or float32; inputs are contiguous.
        weights: one to three prepared weights of one format (weight.py); checked by the caller, as all else.
        biases: none, or one (out_features,) for each weight.
        out_features: of each weight.
        form: the format of all weights, `Format.numbers()`.
        residual: (m, out_features) added to the result, which is then a single one.
        silu: the result is SiLU(x @ weights[0].T) * (x @ weights[1].T).
        config: how to cut the work; None for what dispatch.py chooses.
        out_dtype: of the result; None for that of x.

    Returns:
        one (m, out_features) for each weight; with `silu` one for both.
    """
    from llmquant.kernels.gpu.linear_a8 import linear_w4a8 as kernel

    has, m = Format.read(form), x.shape[0]
    if config is None:
        where = runtime.arch(x.device), "w4a8", max(m, 1), sum(out_features), has.in_features, has.unit
        config = dispatch.choose(*where, processors=processors(x.device))
    count = 1 if silu else len(weights)
    outs = [x.new_empty((m, n), dtype=out_dtype or x.dtype) for n in out_features[:count]]
    if m == 0:
        return outs
    codes, steps, sums = quantized_blocks(x, has, config)
    grid, partials, arrivals = split_work(x, config, out_features, silu, torch.float32)
    padded = [*range(len(weights)), *[0] * (MOST_PARTS - len(weights))]
    arguments = [
        *(codes, steps, sums),
        *(weights[part] for part in padded),
        *(biases[part] if biases else x for part in padded),
        x if residual is None else residual,
        *(outs[part if part < count else 0] for part in padded),
        *(partials, arrivals, m, codes.shape[0], has.tiles_k),
        *(out_features[part] for part in padded),
    ]
    kernel[grid](
        *arguments,
        **_compile_time_w4a8(has, config, len(weights), silu, bool(biases), residual is not None, target()),
    )
    return outs


@lru_cache(maxsize=4096)
def _compile_time_w4a8(
    has: Format, config: Config, parts: int, silu: bool, bias: bool, residual: bool, _: tuple[bool, bool]
) -> dict[str, Any]:
    """Everything that the compiler sees; kept, since each call of a layer asks."""
    return {**constants_w4a8(has, config, parts, silu, bias, residual), **options(config)}


def constants_w4a8(has: Format, config: Config, parts: int, silu: bool, bias: bool, residual: bool) -> dict[str, Any]:
    """The compile-time arguments of the kernel linear_w4a8; also what the compile gates compile.

    Args:
        has: format of the weights.
        config: of the launch.
        parts: how many weights.
        silu: as in `linear_w4a8`.
        bias: whether there are biases.
        residual: whether there is a residual.
    """
    return {
        "UNIT": has.unit,
        "ASYMMETRIC": has.asymmetric,
        "SCALE": triton_dtype(has.scale_dtype),
        "PARTS": parts,
        "SILU": silu,
        "BIAS": bias,
        "RESIDUAL": residual,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "SPLIT_K": config.split_k,
        "ASM": uses_asm(),
        "PDL": config.pdl and torch.version.hip is None,
    }


def linear_w8a8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    input_scale: Tensor | None = None,
    *,
    config: Config | None = None,
) -> Tensor:
    """The op `llmquant::linear_w8a8`, with the bits of its reference (llmquant.kernels.linear_w8a8).

    Args:
        x: (..., in_features) bfloat16, float16 or float32.
        weight: (out_features, in_features) int8.
        scale: (out_features, 1) float.
        bias: (out_features,) in the dtype of x.
        input_scale: (1,) of all rows; None if each has its own.
        config: how to cut the work; None for what dispatch.py chooses.

    Returns:
        (..., out_features) in the dtype of x.
    """
    from llmquant.kernels.gpu.linear_a8 import linear_w8a8 as kernel

    n, in_features = weight.shape
    out = x.new_empty((*x.shape[:-1], n))
    if not out.numel():
        return out
    m = out.numel() // n
    rows = x.reshape(m, in_features)
    if config is None:
        arch = runtime.arch(x.device)
        config = dispatch.choose(arch, "w8a8", m, n, in_features, 0, processors=processors(x.device))
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
def _compile_time_w8a8(in_features: int, config: Config, bias: bool, where: tuple[bool, bool]) -> dict[str, Any]:
    return {**constants_w8a8(in_features, config, bias), **exact_options(config, where)}


def constants_w8a8(in_features: int, config: Config, bias: bool) -> dict[str, Any]:
    """The compile-time arguments of the kernel linear_w8a8; also what the compile gates compile.

    Args:
        in_features: inputs.
        config: of the launch.
        bias: whether there is a bias.
    """
    return {
        "BIAS": bias,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "SPLIT_K": config.split_k,
        "EVEN_K": in_features % TILE_K == 0,
        "PDL": config.pdl and torch.version.hip is None,
    }
