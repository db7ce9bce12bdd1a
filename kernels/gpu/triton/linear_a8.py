"""The kernels for 8-bit activations: `out.T = W @ x.T` with whole numbers, exact, in the int8 tensor cores.

    linear_w4a8   prepared weights of 4-bit words (weight.py), x from quantize.quantize_blocks
    linear_w8a8   weights as checkpoints store them, x from quantize.quantize_rows

W is operand A, as in linear_a16.py. Words become operands in registers: a code in the upper half of a byte is 16 times
the code, so that two masks and one shift turn a word into eight operands; the scale of x has the 1/16. What is in which
place of a register is up to the hardware; quantize.py brings x into the same order.

Sums are int32 over a block of inputs that shares its scales, then float32. For a weight with zeros the sum of the
block's x times the zero is taken away first, as a whole number, and so exactly.
"""

# Triton's annotations are for the host's side of a kernel, and its kernels are long.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from llmquant.kernels.gpu.triton.blocks import locate, part_of, units_of
from llmquant.kernels.gpu.triton.epilogue import finish, reduced
from llmquant.kernels.gpu.triton.per_row import load_pairs, unpack_pairs
from llmquant.kernels.gpu.triton.prefetch import fetch_ahead

# Outputs are written after the last use of the input: they may share its register.
_NIBBLES = tl.constexpr("""{
.reg .b32 low;
and.b32 low, $2, 0x0f0f0f0f;
and.b32 $1, $2, 0xf0f0f0f0;
shl.b32 $0, low, 4;
}""")


@triton.jit(do_not_specialize=["m"])
def linear_w4a8(
    x, steps, sums,
    weight0, weight1, weight2, bias0, bias1, bias2, residual, out0, out1, out2, partials, counters,
    m, padded_m, tiles_k, n0, n1, n2,
    UNIT: tl.constexpr, ASYMMETRIC: tl.constexpr, SCALE: tl.constexpr,
    PARTS: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT_K: tl.constexpr,
    ASM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute one block; W4A8.

    As linear_a16.py has it, but for

    Args:
        x: (padded_m, tiles_k * 128) int8, permuted, from quantize_blocks, in blocks of UNIT inputs, at most 128.
        steps: (blocks, padded_m) float32, likewise.
        sums: (blocks, padded_m) int32, likewise; ignored if not ASYMMETRIC.
        padded_m: rows of x, those included that only pad the last block.
        tiles_k: inputs / 128, rounded up.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    block_m, block_n, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    block = block_n * tl.num_programs(0) + block_m
    block_m, block_n = _place(block, BLOCK_M)
    weight, bias, out, n, block_n = part_of(
        block_n, weight0, weight1, weight2, bias0, bias1, bias2, out0, out1, out2, n0, n1, n2,
        1 if SILU else PARTS, BLOCK_N,
    )  # fmt: skip
    starts, scales, zeros, pairs = locate(weight, weight1, block_n, n, tiles_k, 4, UNIT, SCALE, BLOCK_N, SILU)
    words = starts.to(tl.pointer_type(tl.int8))[:, None] + tl.arange(0, 64)[None, :]

    rows = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    first, end = tiles_k * split // SPLIT_K, tiles_k * (split + 1) // SPLIT_K
    size: tl.constexpr = UNIT if UNIT == 32 or UNIT == 64 else 128
    # A tile ahead; with a single unit, the same for all. The steps of x come in the same way.
    scale_ahead = load_pairs(scales, pairs, first, UNIT)
    zero_ahead = load_pairs(zeros if ASYMMETRIC else scales, pairs, first, UNIT)
    if PDL:  # the weights do not depend on the kernel in front
        fetch_ahead(starts, first, end, 4)
        tl.extra.cuda.gdc_wait()
    # A thread holds many of them in large blocks, where there are no registers left for it.
    STEPS_AHEAD: tl.constexpr = BLOCK_M <= 32
    if STEPS_AHEAD:
        steps_ahead = load_pairs(steps + rows, padded_m, first, size)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for k in range(first, end):
        scale_pairs, zero_pairs = scale_ahead, zero_ahead
        ahead = tl.minimum(k + 1, end - 1)
        if STEPS_AHEAD:
            step = steps_ahead
            steps_ahead = load_pairs(steps + rows, padded_m, ahead, size)
        else:
            step = load_pairs(steps + rows, padded_m, k, size)
        if UNIT != 0:
            scale_ahead = load_pairs(scales, pairs, ahead, UNIT)
            if ASYMMETRIC:
                zero_ahead = load_pairs(zeros, pairs, ahead, UNIT)
        tile = tl.reshape(tl.load(words + k * 4096), (BLOCK_N, 4, 4, 4))
        parts = units_of(tile, size)
        for part in tl.static_range(128 // size):
            unit = k * (128 // size) + part
            values = _codes(x + unit * size, rows, m, tiles_k, size)
            product = tl.dot(operand(parts[part], ASM), tl.trans(values), out_dtype=tl.int32)
            if ASYMMETRIC:
                minus = -unpack_pairs(zero_pairs[part], tl.int8).to(tl.int32)
                product += minus[:, None] * tl.load(sums + unit.to(tl.int64) * padded_m + rows)[None, :]
            scaled = product.to(tl.float32) * step[part][None, :]
            if UNIT != 0:
                scaled *= unpack_pairs(scale_pairs[part], SCALE).to(tl.float32)[:, None]
            acc += scaled

    if SPLIT_K > 1:
        last, acc = reduced(acc, rows, m, partials, counters, block, split, SPLIT_K)
        if not last:
            return
    if UNIT == 0:
        acc *= unpack_pairs(scale_ahead[0], SCALE).to(tl.float32)[:, None]
    width: tl.constexpr = BLOCK_N // 2 if SILU else BLOCK_N
    outputs = block_n * width + tl.arange(0, width)
    finish(acc, outputs, rows, n, m, bias, bias1, residual, out, BIAS, RESIDUAL, SILU)


@triton.jit(do_not_specialize=["m"])
def linear_w8a8(
    x, steps, weight, scale, bias, out, partials, counters, m, n, in_features,
    BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute one block; W8A8. For the bits of the reference, compile it without fused multiply-add.

    Args:
        x: (m, in_features rounded up to a multiple of 128) int8, from quantize_rows, with room for the last block.
        steps: (m,) float32, likewise.
        weight: (n, in_features) int8.
        scale: (n,) float, like `bias`.
        out: (m, n).
        partials: int32, room for split-K (epilogue.py).
        counters: int32, zeros, for split-K.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    block_m, block_n, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    block = block_n * tl.num_programs(0) + block_m
    block_m, block_n = _place(block, BLOCK_M)
    outputs, rows = block_n * BLOCK_N + tl.arange(0, BLOCK_N), block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    inputs = tl.arange(0, 128)
    tiles_k = tl.cdiv(in_features, 128)
    # Outputs that do not exist read number 0, and are not written.
    of_weight = weight + tl.where(outputs < n, outputs, 0).to(tl.int64)[:, None] * in_features + inputs[None, :]
    first, end = tiles_k * split // SPLIT_K, tiles_k * (split + 1) // SPLIT_K
    if PDL:
        tl.extra.cuda.gdc_wait()
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    for k in range(first, end):
        if EVEN_K:
            w = tl.load(of_weight + k * 128)
        else:
            w = tl.load(of_weight + k * 128, mask=(k * 128 + inputs < in_features)[None, :], other=0)
        acc = tl.dot(w, tl.trans(_codes(x + k * 128, rows, m, tiles_k, 128)), acc, out_dtype=tl.int32)

    if SPLIT_K > 1:
        last, acc = reduced(acc, rows, m, partials, counters, block, split, SPLIT_K)
        if not last:
            return
    step = tl.load(steps + rows, mask=rows < m, other=0.0)
    scales = tl.load(scale + outputs, mask=outputs < n, other=0.0).to(tl.float32)
    result = acc.to(tl.float32) * step[None, :] * scales[:, None]
    finish(result, outputs, rows, n, m, bias, bias, bias, out, BIAS, False, False)


@triton.jit
def _place(block, BLOCK_M: tl.constexpr):
    """Block of rows and block of outputs of a program; neighbours share both, so that the level-2 cache serves them."""
    across, down = tl.num_programs(0), tl.num_programs(1)
    if BLOCK_M < 64:
        return block % across, block // across
    group = block // (8 * down)
    height = tl.minimum(across - 8 * group, 8)
    inside = block - 8 * group * down
    return 8 * group + inside % height, inside // height


@triton.jit
def operand(pairs, ASM: tl.constexpr):
    """16 times the codes of some words: (rows, 32 * S) int8, inputs in the order of quantize_blocks.

    `pairs` are (rows, 4, S, 4) int8, two codes in each; S of a tile or a half or a quarter of it.
    """
    rows: tl.constexpr = pairs.shape[0]
    places: tl.constexpr = pairs.shape[2]
    if ASM:
        low, high = tl.inline_asm_elementwise(
            _NIBBLES, "=r,=r,r", [pairs], dtype=(tl.int8, tl.int8), is_pure=True, pack=4
        )
    else:
        low, high = pairs << 4, pairs & -16
    return tl.reshape(tl.permute(tl.join(low, high), (0, 2, 4, 1, 3)), (rows, 32 * places))  # row, s, p, q, j


@triton.jit
def _codes(x, rows, m, tiles_k, SIZE: tl.constexpr):
    """SIZE codes of some rows, from those that x points to, (rows, SIZE); anything for rows that do not exist."""
    at = x + rows.to(tl.int64)[:, None] * (tiles_k * 128) + tl.arange(0, SIZE)[None, :]
    # Where most of the rows may not exist, reading them would take time.
    return tl.load(at) if rows.shape[0] > 32 else tl.load(at, mask=(rows < m)[:, None], other=0)
