"""GPTQ inside one block of inputs: a program has some outputs, and all their targets in registers.

Compiled without fused multiply-adds, which would round once less than `llmquant.kernels.ops.round_block` does: the bits
are those of that definition.
"""

# Triton's annotations are for the host's side of a kernel.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

_SHIFT = tl.constexpr(12582912.0)  # 1.5 * 2^23: a float32 has no digits behind the point up there
_FAR = tl.constexpr(65536.0)  # outside all codes, and small enough for _SHIFT


@triton.jit(do_not_specialize=["inputs"])
def round_block(
    targets, errors, asked, groups, scales, zeros, codes, inputs, outputs,
    LOW: tl.constexpr, HIGH: tl.constexpr, ASYMMETRIC: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """See `llmquant.kernels.ops.round_block.round_block`.

    Args:
        asked: (inputs, inputs), the transpose of `inner` there: what the error of an input asks of those before it is
            one row.
        zeros: ignored if not ASYMMETRIC.
        BLOCK: a power of two, at least `inputs`.
        OUT: outputs of a program, a power of two.
    """
    out = tl.program_id(0) * OUT + tl.arange(0, OUT)
    there = out < outputs
    rows = tl.arange(0, BLOCK)
    places = rows.to(tl.int64)[:, None] * outputs + out[None, :]
    inside = (rows < inputs)[:, None] & there[None, :]
    left = tl.load(targets + places, mask=inside, other=0.0)
    for step in range(inputs):
        row = inputs - 1 - step
        at = row.to(tl.int64) * outputs + out
        grid = tl.load(groups + row) * outputs + out
        target = tl.sum(tl.where((rows == row)[:, None], left, 0.0), 0)
        scale = tl.load(scales + grid, mask=there, other=1.0)
        whole = (tl.clamp(tl.div_rn(target, scale), -_FAR, _FAR) + _SHIFT) - _SHIFT
        if ASYMMETRIC:
            zero = tl.load(zeros + grid, mask=there, other=0.0)
            code = tl.clamp(whole + zero, LOW, HIGH)
            whole = code - zero
        else:
            code = tl.clamp(whole, LOW, HIGH)
            whole = code
        value = (whole * scale).to(DTYPE).to(tl.float32)
        error = tl.load(errors + at, mask=there, other=0.0) - value
        tl.store(errors + at, error, mask=there)
        tl.store(codes + at, code.to(tl.int8), mask=there)
        share = tl.load(asked + row * inputs + rows, mask=rows < row, other=0.0)
        pushed = left + share[:, None] * error[None, :]
        kept = tl.where((rows == row)[:, None], left - value[None, :], left)
        left = tl.where((rows < row)[:, None], pushed, kept)
    tl.store(targets + places, left, mask=inside)
