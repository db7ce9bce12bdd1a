"""Where a program finds its weight: which of the weights of a launch, and where in it codes, scales and zeros are."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def part_of(
    block_n, weight0, weight1, weight2, bias0, bias1, bias2, out0, out1, out2, n0, n1, n2,
    PARTS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The weight that a block of outputs, counted through all PARTS weights, belongs to.

    Returns:
        weight, bias, out, n, and the number of the block in that weight.
    """
    weight, bias, out, n = weight0, bias0, out0, n0
    if PARTS > 1:
        before = tl.cdiv(n0, BLOCK_N)
        if block_n >= before:
            block_n -= before
            weight, bias, out, n = weight1, bias1, out1, n1
            if PARTS > 2:
                before = tl.cdiv(n1, BLOCK_N)
                if block_n >= before:
                    block_n -= before
                    weight, bias, out, n = weight2, bias2, out2, n2
    return weight, bias, out, n, block_n


@triton.jit
def locate(
    weight, second, block_n, n, tiles_k,
    BITS: tl.constexpr, UNIT: tl.constexpr, SCALE: tl.constexpr, BLOCK_N: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Pointers into a prepared weight (weight.py) for block number `block_n`.

    With SILU half of the BLOCK_N outputs are those of `weight`, and half those of `second`, which is of the same size.

    Returns:
        pointers (BLOCK_N,) to each output's bytes of tile 0; pointers (BLOCK_N / 2,) to the pairs of scales and to
        those of zeros of unit 0 (per_row.py); and how many pairs it is from one unit to the next.
    """
    width: tl.constexpr = BLOCK_N // 2 if SILU else BLOCK_N
    padded = tl.cdiv(n, 128) * 128
    lanes, pairs = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_N // 2)
    row = block_n * width + lanes % width
    pair = block_n * (width // 2) + pairs % (width // 2)
    if width > 128:  # the last block may be half outside of the weight: it reads the other half twice
        row = tl.where(row < padded, row, row - 128)
        pair = tl.where(pair < padded // 2, pair, pair - 64)
    bytes_of_row, bytes_of_pair = weight + tl.zeros((BLOCK_N,), tl.int64), weight + tl.zeros((BLOCK_N // 2,), tl.int64)
    if SILU:
        # What Triton can see to be a multiple of 16 it loads 16 bytes at a time; it looks through no tl.where.
        apart = (second.to(tl.int64) - weight.to(tl.int64)) // 16 * 16
        bytes_of_row += (lanes // width).to(tl.int64) * apart
        bytes_of_pair += (pairs // (width // 2)).to(tl.int64) * apart
    tile: tl.constexpr = 1024 * BITS  # bytes of 64 outputs by 128 inputs
    bytes_of_row += (row // 64).to(tl.int64) * (tiles_k * tile) + row % 64 * (tile // 64)
    bytes_of_pair += padded.to(tl.int64) * tiles_k * (tile // 64)
    units = 1 if UNIT == 0 else tl.cdiv(tiles_k * 128, UNIT)
    scale_bytes = tl.cdiv(padded * units * (SCALE.primitive_bitwidth // 8), 256) * 256
    PAIR: tl.constexpr = tl.int64 if SCALE == tl.float32 else tl.int32
    scales = bytes_of_pair.to(tl.pointer_type(PAIR)) + pair
    zeros = (bytes_of_pair + scale_bytes).to(tl.pointer_type(tl.int16)) + pair
    return bytes_of_row, scales, zeros, padded // 2


@triton.jit
def halves(words):
    """(rows, 4, S, ...) as two (rows, 4, S / 2, ...): the words of the first inputs, and those of the last."""
    rows: tl.constexpr = words.shape[0]
    places: tl.constexpr = words.shape[2]
    if len(words.shape) == 3:
        return tl.split(tl.permute(tl.reshape(words, (rows, 4, 2, places // 2)), (0, 1, 3, 2)))
    else:
        return tl.split(tl.permute(tl.reshape(words, (rows, 4, 2, places // 2, 4)), (0, 1, 3, 4, 2)))


@triton.jit
def units_of(tile, SIZE: tl.constexpr):
    """A tile (rows, 4, S, ...) of 128 inputs as a tuple of its units of SIZE inputs."""
    if SIZE == 128:
        return (tile,)
    elif SIZE == 64:
        return halves(tile)
    else:
        low, high = halves(tile)
        return halves(low) + halves(high)
