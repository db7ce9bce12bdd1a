"""The kernel for 4 and 8-bit weights and 16-bit activations: `out.T = W @ x.T` with W as the tensor cores' operand A.

Operand A may come from registers (wgmma, and mma.sync), operand B of wgmma may not. So the product is computed
transposed, and the weights go from memory through shared memory into registers once, as codes; they become floats there
(codes.py) and never return to shared memory. Multiplying happens on whole integers, sums are float32, and a scale
enters where its group ends. The result differs from the exact one by the rounding of float32 sums only.

One program computes `BLOCK_N` outputs of `BLOCK_M` rows over its part of the inputs, 128 of them at a time. Up to three
weights that share x (queries, keys, values) go into one launch; so does a pair (gate, up) whose results are combined.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmquant.kernels.gpu.triton.blocks import locate, part_of, units_of
from llmquant.kernels.gpu.triton.codes import operand
from llmquant.kernels.gpu.triton.epilogue import finish, reduced
from llmquant.kernels.gpu.triton.per_row import load_pairs, unpack_pairs
from llmquant.kernels.gpu.triton.prefetch import fetch_ahead


@triton.jit(do_not_specialize=["m"])
def linear_a16(
    x,
    weight0, weight1, weight2, bias0, bias1, bias2, residual, out0, out1, out2, partials, counters,
    m, in_features, stride_x, n0, n1, n2,
    BITS: tl.constexpr, UNIT: tl.constexpr, ASYMMETRIC: tl.constexpr, SCALE: tl.constexpr,
    PARTS: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT_K: tl.constexpr, EVEN_K: tl.constexpr,
    ASM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute one block.

    BITS (4 or 8, of a code in a word), UNIT (inputs per scale, 0 for all), ASYMMETRIC and SCALE are the format of the
    weights (weight.py); PARTS, SILU, BIAS and RESIDUAL what is asked of them (product.py); BLOCK_M, BLOCK_N and SPLIT_K
    the configuration, half of BLOCK_N being the gate's with SILU. PDL: the launch may overlap with the end of the
    kernel in front.

    Args:
        x: (m, in_features) float, rows `stride_x` apart.
        weight0: prepared weights (uint8) of n0, n1 and n2 outputs; those beyond PARTS are ignored.
        bias0: (n0,), and so on.
        residual: (m, n0).
        out0: (m, n0), and so on; with SILU only this one: SiLU(x @ weight0.T) * (x @ weight1.T).
        partials: float32, room for split-K (epilogue.py).
        counters: int32, zeros, for split-K.
        EVEN_K: whether 128 divides in_features.
        ASM: whether to use PTX.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    block_m, block_n, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    block = block_n * tl.num_programs(0) + block_m
    weight, bias, out, n, block_n = part_of(
        block_n, weight0, weight1, weight2, bias0, bias1, bias2, out0, out1, out2, n0, n1, n2,
        1 if SILU else PARTS, BLOCK_N,
    )  # fmt: skip
    tiles_k = tl.cdiv(in_features, 128)
    starts, scales, zeros, step = locate(weight, weight1, block_n, n, tiles_k, BITS, UNIT, SCALE, BLOCK_N, SILU)
    words = starts.to(tl.pointer_type(tl.int32))[:, None] + tl.arange(0, 4 * BITS)[None, :]

    rows = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    first, end = tiles_k * split // SPLIT_K, tiles_k * (split + 1) // SPLIT_K
    size: tl.constexpr = UNIT if UNIT == 32 or UNIT == 64 else 128
    # A tile ahead; with a single unit, the same for all. That too is multiplied in tile by tile: sums that nothing
    # scales in between stay in the tensor cores, and then Triton waits for every wgmma.
    scale_ahead = load_pairs(scales, step, first, UNIT)
    zero_ahead = load_pairs(zeros if ASYMMETRIC else scales, step, first, UNIT)
    if PDL:  # the weights do not depend on the kernel in front
        fetch_ahead(starts, first, end, BITS)
        tl.extra.cuda.gdc_wait()
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for k in range(first, end):
        scale_pairs, zero_pairs = scale_ahead, zero_ahead
        if UNIT != 0:
            scale_ahead = load_pairs(scales, step, tl.minimum(k + 1, end - 1), UNIT)
            if ASYMMETRIC:
                zero_ahead = load_pairs(zeros, step, tl.minimum(k + 1, end - 1), UNIT)
        tile = tl.reshape(tl.load(words + k * (256 * BITS)), (BLOCK_N, 4, BITS))
        parts = units_of(tile, size)
        for part in tl.static_range(128 // size):
            inputs = k * 128 + part * size + tl.arange(0, size)
            values = _activations(x, rows, inputs, m, in_features, stride_x, EVEN_K)
            zero = unpack_pairs(zero_pairs[part], tl.int8).to(tl.int32) if ASYMMETRIC else 0
            codes = operand(parts[part], zero, BITS, ASYMMETRIC, x.dtype.element_ty, ASM)
            product = tl.dot(codes, tl.trans(values), input_precision="ieee")
            acc += product * unpack_pairs(scale_pairs[part], SCALE).to(tl.float32)[:, None]

    if SPLIT_K > 1:
        last, acc = reduced(acc, rows, m, partials, counters, block, split, SPLIT_K)
        if not last:
            return
    width: tl.constexpr = BLOCK_N // 2 if SILU else BLOCK_N
    outputs = block_n * width + tl.arange(0, width)
    finish(acc, outputs, rows, n, m, bias, bias1, residual, out, BIAS, RESIDUAL, SILU)


@triton.jit
def _activations(x, rows, inputs, m, in_features, stride_x, EVEN_K: tl.constexpr):
    """Some inputs of some rows of x, (rows, inputs), with zeros where there are none."""
    if rows.shape[0] > 32:  # reading a row twice costs less than a mask; reading it 16 times costs more
        rows = tl.where(rows < m, rows, 0)
    at = x + rows[:, None].to(tl.int64) * stride_x + inputs[None, :]
    if EVEN_K and rows.shape[0] > 32:
        return tl.load(at)
    elif EVEN_K:
        return tl.load(at, mask=(rows < m)[:, None], other=0.0)
    else:
        return tl.load(at, mask=(rows < m)[:, None] & (inputs < in_features)[None, :], other=0.0)
