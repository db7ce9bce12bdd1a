"""What the kernels do after their product: add up the sums of split-K, and finish a block.

Split-K is deterministic: every program writes its partial sums, and the one that finds all others done, by an atomic
counter, adds them up in the order of the inputs. It leaves the counter at zero for the next launch.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def reduced(acc, rows, m, partials, counters, tile, split, SPLIT_K: tl.constexpr):
    """Add up the sums of all programs that share a tile of the result.

    Args:
        acc: (block_n, block_m) sums of this program, in the dtype of `partials`.
        rows: (block_m,) rows of x; sums of those beyond m are not exchanged, which saves most of it for a few rows.
        m: rows of x.
        partials: room for SPLIT_K blocks per tile.
        counters: int32, one per tile, zero between launches.
        tile: its number.
        split: number of this program among the SPLIT_K of the tile.

    Returns:
        whether this program is the last one, and has to finish the tile; the total, if it is.
    """
    block_n: tl.constexpr = acc.shape[0]
    block_m: tl.constexpr = acc.shape[1]
    # Outputs of a row lie side by side: the unit of the cache is then full also where there is a single row.
    places = tl.arange(0, block_m)[None, :] * block_n + tl.arange(0, block_n)[:, None]
    first = partials + tile.to(tl.int64) * (SPLIT_K * block_n * block_m) + places
    inside = (rows < m)[None, :]
    tl.store(first + split * (block_n * block_m), acc, mask=inside)
    tl.debug_barrier()  # all threads have written before one of them counts
    last = tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu") == SPLIT_K - 1
    if last:
        acc = tl.load(first, mask=inside, other=0, cache_modifier=".cg")
        for other in tl.range(1, SPLIT_K, loop_unroll_factor=4 if block_n * block_m <= 4096 else 1):
            acc += tl.load(first + other * (block_n * block_m), mask=inside, other=0, cache_modifier=".cg")
        tl.store(counters + tile, 0)
    return last, acc


@triton.jit
def finish(
    acc, rows_n, rows_m, n, m, bias0, bias1, residual, out,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Bias, SiLU(gate) * up, residual, cast and store of a block.

    Args:
        acc: (block_n, block_m) float32; with SILU its first half is the gate, the second the up projection.
        rows_n: (block_n,) or, with SILU, (block_n / 2,) outputs.
        rows_m: (block_m,) rows; `residual` and `out` are (m, n).
        bias0: (n,) of the weight, or of the gate; bias1 is of the up projection.
    """
    block_n: tl.constexpr = acc.shape[0]
    block_m: tl.constexpr = acc.shape[1]
    if SILU:
        pair = tl.permute(tl.reshape(acc, (2, block_n // 2, block_m)), (1, 2, 0))
        acc, up = tl.split(pair)
    inside_n = rows_n < n
    if BIAS:
        acc += tl.load(bias0 + rows_n, mask=inside_n, other=0.0).to(tl.float32)[:, None]
    if SILU:
        if BIAS:
            up += tl.load(bias1 + rows_n, mask=inside_n, other=0.0).to(tl.float32)[:, None]
        acc = acc / (1.0 + tl.exp(-acc)) * up
    places = rows_m[None, :].to(tl.int64) * n + rows_n[:, None]
    inside = inside_n[:, None] & (rows_m < m)[None, :]
    if RESIDUAL:
        acc += tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + places, acc.to(out.dtype.element_ty), mask=inside)
