"""From activations to launches of the kernels in quantize.py: buffers that the product in linear_a8.py reads."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.gpu.choose.config import Config
from llmquant.kernels.gpu.compiling import Target, options, target
from llmquant.kernels.gpu.weight import TILE_K, Format

_LONGEST = 32768  # inputs of a row that a program quantizes at once: 32 for each of 1024 threads


def quantized_blocks(x: Tensor, has: Format, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize x (m, in_features), whose inputs are contiguous, for W4A8 with weights and a configuration.

    Returns:
        codes (rows, inputs) int8, steps (blocks, rows) float32, and sums (blocks, rows) int32, anything if the weights
        have no zeros; as quantize.quantize_blocks writes them. Rows are m, up to a multiple of block_m, inputs up to
        one of 128. A block is the unit of the weights, or 128 inputs, whichever is smaller.
    """
    from llmquant.kernels.gpu.triton.quantize import quantize_blocks

    m, tiles = x.shape[0], has.tiles_k
    padded = -(-m // config.block_m) * config.block_m
    constants = constants_blocks(has, m >= 8, config.pdl, target())
    blocks = tiles * TILE_K // constants["BLOCK"]
    codes = x.new_empty((padded, tiles * TILE_K), dtype=torch.int8)
    steps = x.new_empty((blocks, padded), dtype=torch.float32)
    sums = x.new_empty((blocks, padded), dtype=torch.int32) if has.asymmetric else codes
    grid = (-(-padded // constants["ROWS"]), -(-tiles // constants["TILES"]))
    quantize_blocks[grid](x, codes, steps, sums, m, padded, has.in_features, x.stride(0), tiles, **constants)
    return codes, steps, sums


@lru_cache(maxsize=1024)
def constants_blocks(has: Format, many: bool, pdl: bool, where: Target) -> dict[str, Any]:
    """The compile-time arguments and options of quantize_blocks, for many rows or a few."""
    # Several rows at a time, so that their steps, which are neighbours, are written together.
    rows, tiles = (8, 2) if many else (1, 8)
    config = Config(0, 0, stages=1, pdl=pdl)
    return {
        "BLOCK": has.unit if 0 < has.unit < TILE_K else TILE_K,
        "SUMS": has.asymmetric,
        "ROWS": rows,
        "TILES": tiles,
        "PDL": where.overlaps(config),
        **options(config, where, fused=False),
    }


def quantized_rows(x: Tensor, input_scale: Tensor | None, config: Config) -> tuple[Tensor, Tensor]:
    """Quantize x (m, in_features), whose inputs are contiguous, for W8A8; `input_scale` (1,) is of all rows.

    Returns:
        codes (rows, inputs) int8 and steps (rows,) float32, as quantize.quantize_rows writes them. Rows are m, up to a
        multiple of block_m, inputs up to one of 128.
    """
    from llmquant.kernels.gpu.triton.quantize import quantize_rows

    m, in_features = x.shape
    padded, width = -(-m // config.block_m) * config.block_m, -(-in_features // TILE_K) * TILE_K
    codes, steps = x.new_empty((padded, width), dtype=torch.int8), x.new_empty(padded, dtype=torch.float32)
    given = x if input_scale is None else input_scale
    constants = constants_rows(in_features, x.dtype, input_scale is not None, config.pdl, target())
    quantize_rows[(m,)](x, given, codes, steps, in_features, x.stride(0), width, **constants)
    return codes, steps


@lru_cache(maxsize=1024)
def constants_rows(in_features: int, dtype: torch.dtype, static: bool, pdl: bool, where: Target) -> dict[str, Any]:
    """The compile-time arguments and options of quantize_rows; `static` if the scale is given."""
    block = min(1 << max(in_features - 1, TILE_K - 1).bit_length(), _LONGEST)
    warps = min(max(block // 512, 1), 16 if where.hip else 32)  # at most 1024 threads
    config = Config(0, 0, warps=warps, stages=1, pdl=pdl)
    return {
        "STATIC": static,
        "EPS": torch.finfo(dtype).eps,
        "BLOCK": block,
        "WHOLE": in_features <= block,
        "PDL": where.overlaps(config),
        **options(config, where, fused=False),
    }
