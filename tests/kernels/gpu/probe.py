"""A kernel that tells where the others would read."""

from __future__ import annotations

import triton
import triton.language as tl

from llmquant.kernels.gpu.triton.blocks import locate


@triton.jit
def first_and_last(weight, ends, n, tiles_k, BITS: tl.constexpr, UNIT: tl.constexpr, BLOCK_N: tl.constexpr):
    """The lowest and the highest offset of a block's codes, scales and zeros into a weight with fp16 scales."""
    block = tl.program_id(0)
    codes, scales, zeros, _ = locate(weight, weight, block, n, tiles_k, BITS, UNIT, tl.float16, BLOCK_N, False)
    base = weight.to(tl.int64)
    at = ends + block * 6
    tl.store(at, tl.min(codes.to(tl.int64) - base, 0))
    tl.store(at + 1, tl.max(codes.to(tl.int64) - base, 0))
    tl.store(at + 2, tl.min(scales.to(tl.int64) - base, 0))
    tl.store(at + 3, tl.max(scales.to(tl.int64) - base, 0))
    tl.store(at + 4, tl.min(zeros.to(tl.int64) - base, 0))
    tl.store(at + 5, tl.max(zeros.to(tl.int64) - base, 0))
