"""Kernel layout to a dense weight, for products that the library does better, and for gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from llmquant.kernels.gpu.triton.codes import operand


@triton.jit
def dequantize_tile(
    weight, out, out_features, in_features, first, count,
    BITS: tl.constexpr, UNIT: tl.constexpr, ASYMMETRIC: tl.constexpr,
    SCALE: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Write one tile of 64 outputs by 128 inputs; rounded to the dtype of the scales first, as the definition says.

    `out` is (count, in_features) of DTYPE, and its row 0 the output `first` of the weight, a multiple of 64.
    """
    tile_n, tile_k = tl.program_id(0), tl.program_id(1)
    tiles_k = tl.num_programs(1)
    lanes = tl.arange(0, 64)
    row = tile_n * 64 + lanes
    padded = tl.cdiv(out_features, 128) * 128
    words_per_row: tl.constexpr = 4 * BITS
    tile = (first // 64 + tile_n).to(tl.int64) * tiles_k + tile_k
    at = weight.to(tl.pointer_type(tl.int32)) + tile * (64 * words_per_row)
    words = tl.load(at + lanes[:, None] * words_per_row + tl.arange(0, words_per_row)[None, :])
    code_bytes = padded.to(tl.int64) * tiles_k * (16 * BITS)
    units = 1 if UNIT == 0 else tl.cdiv(tiles_k * 128, UNIT)
    scale_bytes = tl.cdiv(padded * units * (SCALE.primitive_bitwidth // 8), 256) * 256
    inputs = tile_k * 128 + tl.arange(0, 128)
    size: tl.constexpr = 128 if UNIT == 0 or UNIT >= 128 else UNIT
    per_tile: tl.constexpr = 128 // size
    # One row of scales for each unit that the tile touches.
    if UNIT == 0:
        unit = tl.zeros((1,), tl.int32)
    elif UNIT >= 128:
        unit = tl.zeros((1,), tl.int32) + tile_k * 128 // UNIT
    else:
        unit = tile_k * per_tile + tl.arange(0, per_tile)
    pair = row // 16 * 16 + row % 8 * 2 + row % 16 // 8  # where weight.py puts the scale of an output
    places = unit[None, :] * padded + (first + pair)[:, None]
    scale = tl.load((weight + code_bytes).to(tl.pointer_type(SCALE)) + places)
    zero = tl.zeros((64, per_tile), tl.int32)
    if ASYMMETRIC:
        zero = tl.load((weight + code_bytes + scale_bytes).to(tl.pointer_type(tl.int8)) + places).to(tl.int32)
    codes = operand(
        tl.reshape(words, (64, 4, BITS)),
        tl.zeros((64,), tl.int32),
        BITS,
        False,
        tl.bfloat16 if ASM else tl.float32,
        ASM,
    )
    whole = tl.reshape(codes.to(tl.float32), (64, per_tile, size)) - zero.to(tl.float32)[:, :, None]
    value = (whole * scale.to(tl.float32)[:, :, None]).to(SCALE).to(DTYPE)
    inside = (row < count)[:, None] & (inputs < in_features)[None, :]
    tl.store(out + row[:, None].to(tl.int64) * in_features + inputs[None, :], tl.reshape(value, (64, 128)), mask=inside)
