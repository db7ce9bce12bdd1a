"""Activations to 8-bit codes: one scale per row for W8A8, one per row and block of inputs for W4A8.

Rows of codes are padded with zeros to a multiple of 128 inputs, so that the product needs no masks. Every operation is
correctly rounded, so the codes are the same on every device, and for rows the bits of
`llmquant.kernels.ops.linear_w8a8.quantize_tokens`.

Codes for W4A8 are permuted within every 32 inputs, because the tensor cores want eight-bit operands in another order
than the four-bit words of weight.py hold them. A byte j of word (q, s) holds inputs k = 32 s + 8 h + 2 q + b with
b = j / 2 and h = 2 (j % 2) + p, p = 0 in its low half and 1 in its high half. Taken as they are, the four low halves of
a word make one operand register and the four high halves another, and lane q of four holds in them, by the PTX ISA
(mma.m16n8k32 and wgmma.m64nNk32, fragments of A), inputs 16 p + 4 q + j of 32. So code k of x is stored at
32 s + 16 p + 4 q + j.
"""

# Triton's annotations are for the host's side of a kernel.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

_SHIFT = tl.constexpr(12582912.0)  # 1.5 * 2^23: a float32 has no digits behind the point up there
_SHIFT_BITS = tl.constexpr(0x4B400000)
_LEAST = tl.constexpr(2.0**-112)  # a block with smaller values counts as one of zeros: its inverse must be finite


@triton.jit
def quantize_rows(
    x, input_scale, codes, steps, in_features, stride_x, padded,
    STATIC: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`quantize_tokens` of one row.

    Args:
        x: (m, in_features) float, rows `stride_x` apart.
        input_scale: (1,) of all rows; ignored if not STATIC.
        codes: (m, padded) int8, natural order.
        steps: (m,) float32, the scales; NaN for rows that are not finite, and for scales that are not positive.
        padded: in_features rounded up to a multiple of 128.
        EPS: scale of rows of zeros: the epsilon of the dtype of x.
        BLOCK: inputs at a time, a power of two of at least 128.
        WHOLE: whether a row fits a block; else it is read twice.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    x += row * stride_x
    codes += row * padded
    lanes = tl.arange(0, BLOCK)
    if WHOLE:
        values = tl.load(x + lanes, mask=lanes < in_features, other=0.0).to(tl.float32)
        most = _magnitude(values)
    else:
        most = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, in_features, BLOCK):
            values = tl.load(x + first + lanes, mask=first + lanes < in_features, other=0.0).to(tl.float32)
            most = tl.maximum(most, _magnitude(values))
    largest = tl.max(most, 0)
    if STATIC:
        step = tl.load(input_scale).to(tl.float32)
    else:
        step = tl.div_rn(largest, 127.5).to(x.dtype.element_ty).to(tl.float32)
        step = tl.where(step == 0.0, EPS, step)
    good = (largest < float("inf")) & (step > 0.0) & (step < float("inf"))
    tl.store(steps + row, tl.where(good, step, float("nan")))
    if WHOLE:
        _store_row(codes, values, step, good, lanes, padded, x.dtype.element_ty)
    else:
        for first in range(0, padded, BLOCK):
            values = tl.load(x + first + lanes, mask=first + lanes < in_features, other=0.0).to(tl.float32)
            _store_row(codes, values, step, good, first + lanes, padded, x.dtype.element_ty)


@triton.jit
def _store_row(codes, values, step, good, lanes, padded, DTYPE: tl.constexpr):
    values = tl.where(good, values, 0.0)
    quotients = tl.clamp(tl.div_rn(values, tl.where(good, tl.zeros_like(values) + step, 1.0)), -128.0, 127.0)
    whole = _nearest(quotients.to(DTYPE).to(tl.float32))  # the definition clamps after rounding: the same
    tl.store(codes + lanes, whole.to(tl.int8), mask=lanes < padded)


@triton.jit(do_not_specialize=["m"])
def quantize_blocks(
    x, codes, steps, sums, m, padded_m, in_features, stride_x, tiles_k,
    BLOCK: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Codes of W4A8: nearest to x / scale, with scale = max|x| / 127 of a block; permuted (see the module docstring).

    Args:
        x: (m, in_features) float, rows `stride_x` apart.
        codes: (padded_m, tiles_k * 128) int8.
        steps: (blocks, padded_m) float32: scale / 16, because the weights' operands are 16 times their codes; NaN for a
            block that is not finite, whose codes are zeros.
        sums: (blocks, padded_m) int32, 16 times the sum of the codes of a block; ignored if not SUMS.
        padded_m: rows with room: whole blocks of the product.
        tiles_k: in_features / 128, rounded up.
        BLOCK: inputs that share a scale: 32, 64 or 128.
        ROWS: of a program, which has as many TILES of 128 inputs of each.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    per_tile: tl.constexpr = 128 // BLOCK
    lines = tl.arange(0, ROWS * TILES)
    row = tl.program_id(0) * ROWS + lines // TILES
    tile = tl.program_id(1) * TILES + lines % TILES
    inputs = tile[:, None] * 128 + tl.arange(0, 128)[None, :]
    at = x + row.to(tl.int64)[:, None] * stride_x + inputs
    values = tl.load(at, mask=(row < m)[:, None] & (inputs < in_features), other=0.0).to(tl.float32)

    blocks = tl.reshape(values, (ROWS * TILES, per_tile, BLOCK))
    largest = tl.max(_magnitude(blocks), 2)
    good = largest < float("inf")
    largest = tl.maximum(largest, _LEAST)
    inverse = tl.div_rn(tl.zeros_like(largest) + 127.0, largest)
    whole = _nearest(tl.where(good[:, :, None], blocks, 0.0) * inverse[:, :, None])

    # Rows beyond m get steps too: the product reads those of whole blocks. Their codes may be anything.
    inside = (row < padded_m) & (tile < tiles_k)
    numbers = (tile * per_tile)[:, None] + tl.arange(0, per_tile)[None, :]
    places = numbers.to(tl.int64) * padded_m + row[:, None]
    tl.store(steps + places, tl.where(good, tl.div_rn(largest, tl.zeros_like(largest) + 2032.0), float("nan")),
             mask=inside[:, None])  # fmt: skip
    if SUMS:
        tl.store(sums + places, 16 * tl.sum(whole, 2), mask=inside[:, None])
    # (line and s, h / 2, p, q, b) to (line and s, p, q, b, h / 2), where h = 2 (h / 2) + p and j = 2 b + h / 2
    ordered = tl.permute(tl.reshape(whole.to(tl.int8), (ROWS * TILES * 4, 2, 2, 4, 2)), (0, 2, 3, 4, 1))
    out = codes + row.to(tl.int64)[:, None] * (tiles_k * 128) + inputs
    tl.store(out, tl.reshape(ordered, (ROWS * TILES, 128)), mask=((row < m) & (tile < tiles_k))[:, None])


@triton.jit
def _magnitude(values):
    """|values|, infinity for NaN: what a maximum may overlook."""
    return tl.where(tl.abs(values) < float("inf"), tl.abs(values), float("inf"))


@triton.jit
def _nearest(values):
    """The whole numbers nearest to float32 values, ties to even, as int32; for magnitudes below 2^22."""
    return (values + _SHIFT).to(tl.int32, bitcast=True) - _SHIFT_BITS
