"""Rows of a packed weight, looked up by number and dequantized: the op `llmquant::embedding_int`.

    embedding_int(Tensor ids, Tensor packed, Tensor scale, Tensor? zero, int bits, SymInt in_features, ScalarType dtype)
        -> Tensor

`ids` are integers of any shape, the result (*ids.shape, in_features) of `dtype`; the weight is a `PackedWeight`. Only
the rows that are asked for are touched, so a token costs the same whatever the vocabulary. The values are bit for bit
those of `dequantize` followed by a lookup.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from llmquant.kernels.ops.dequantize import UnpackRows, unpack_rows
from llmquant.kernels.ops.frozen import define
from llmquant.kernels.product import PackedWeight


def embedding_by(
    unpack: UnpackRows,
    ids: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    in_features: int,
    dtype: torch.dtype,
) -> Tensor:
    """What the op runs where `unpack` turns rows into floats.

    Raises:
        IndexError: if an id is no row.
        RuntimeError: if the tensors are no packed weight with `in_features` columns.
    """
    _check(ids, packed, scale, zero, bits, in_features)
    rows = ids.reshape(-1).long()
    words = packed.index_select(0, rows)
    scales, zeros = _rows_of_grid(rows, scale, zero, bits)
    return unpack(words, scales, zeros, bits, in_features, dtype).view(*ids.shape, in_features)


def _rows_of_grid(rows: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> tuple[Tensor, Tensor | None]:
    """Scales and zeros (int8) of some rows; (1, 1) where one serves the whole weight."""
    if scale.numel() == 1:
        return scale.reshape(1, 1), None if zero is None else zero.reshape(1, 1).to(torch.int8)
    scales = scale.index_select(0, rows)
    if zero is None:
        return scales, None
    # A zero point is `bits` bits of a stream of words that runs down a column; with 3 bits it may lie in two words.
    begin = rows * bits
    low = zero.index_select(0, begin // 32).long() & 0xFFFFFFFF
    high = zero.index_select(0, (begin + bits - 1) // 32).long() & 0xFFFFFFFF
    shift = (begin % 32).unsqueeze(-1)
    codes = ((high << 32 | low) >> shift) & ((1 << bits) - 1)
    return scales, (codes - (1 << (bits - 1))).to(torch.int8)


def _check(ids: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, in_features: int) -> None:
    integers = (torch.int64, torch.int32)
    torch._check(ids.dtype in integers, lambda: f"ids are int64 or int32, got {ids.dtype} {list(ids.shape)}")
    PackedWeight(packed, scale, zero, bits, in_features).check()


def _fake(
    ids: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    in_features: int,
    dtype: torch.dtype,
) -> Tensor:
    _check(ids, packed, scale, zero, bits, in_features)
    return packed.new_empty((*ids.shape, in_features), dtype=dtype)


_library = torch.library.Library("llmquant", "FRAGMENT")

#: `torch.ops.llmquant.embedding_int.default`
OP = define(
    _library,
    "embedding_int(Tensor ids, Tensor packed, Tensor scale, Tensor? zero, int bits, SymInt in_features, "
    "ScalarType dtype) -> Tensor",
    partial(embedding_by, unpack_rows),
    _fake,
)
