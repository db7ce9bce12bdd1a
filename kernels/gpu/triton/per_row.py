"""Scales and zero points: one for each output of a block, loaded ahead of their use.

Triton pipelines no loads of 16 bits or less; in the loop each would cost the latency of memory. So kernels load them a
tile early, in pairs: a thread of the tensor cores holds outputs r and r + 8, whose values lie side by side (weight.py),
and a load of fewer values than threads may happen in the layout in which it is needed, without shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_pairs(values, step, k, UNIT: tl.constexpr):
    """Values of a block's outputs for tile k, two in one integer: a tuple, (block_n / 2,) for each unit in the tile.

    `values` are (block_n / 2,) pointers to the pairs of unit 0, as int64, int32 or int16, and it is `step` pairs from
    one unit of UNIT inputs (0: all) to the next.
    """
    if UNIT == 0:
        return (tl.load(values),)
    elif UNIT >= 128:
        return (tl.load(values + k * 128 // UNIT * step),)
    elif UNIT == 64:
        at = values + 2 * k * step
        return tl.load(at), tl.load(at + step)
    else:
        at = values + 4 * k * step
        return tl.load(at), tl.load(at + step), tl.load(at + 2 * step), tl.load(at + 3 * step)


@triton.jit
def unpack_pairs(pairs, DTYPE: tl.constexpr):
    """(block_n,) values of DTYPE, in the order of the outputs, from (block_n / 2,) integers of twice its size."""
    half: tl.constexpr = DTYPE.primitive_bitwidth
    unsigned: tl.constexpr = tl.uint32 if half == 32 else (tl.uint16 if half == 16 else tl.uint8)
    low = pairs.to(unsigned).to(DTYPE, bitcast=True)
    high = (pairs >> half).to(unsigned).to(DTYPE, bitcast=True)
    block: tl.constexpr = 2 * pairs.shape[0]
    split = tl.reshape(tl.join(low, high), (block // 16, 8, 2))
    return tl.reshape(tl.permute(split, (0, 2, 1)), (block,))
