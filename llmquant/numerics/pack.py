"""Pack signed codes into 32-bit words in the layout of compressed-tensors 0.20, and back.

A row is one dense stream of bits, lowest bit first: code i of a row, stored as `code + 2^(bits-1)`, fills bits
`bits * i` to `bits * i + bits - 1` of the row's little-endian words. 2, 4 and 8 bits never cross a word; 3 bits do.
(compressed_tensors/compressors/pack_quantized/helpers.py, 0.20.)

    bits = 4, one word:  | code 7 | code 6 | ... | code 1 | code 0 |     bits 31..28 ... 3..0

Any width packs the same way here: eight codes lie in one 64-bit integer, one a byte, and three shift-and-mask folds
close the gaps, which leaves `bits` full bytes. Rows go through in chunks that stay in the cache.
"""

from __future__ import annotations

import sys

import torch
from jaxtyping import Int8, Int32, Int64
from torch import Tensor

from llmquant.numerics.threads import row_chunks

WORD_BITS = 32


def pack(codes: Int8[Tensor, "rows cols"], bits: int) -> Int32[Tensor, "rows words"]:
    """Pack signed codes of 2, 3, 4 or 8 bits, in [-2^(bits-1), 2^(bits-1) - 1], along their rows.

    A row fills ceil(cols * bits / 32) words; unused high bits of its last word are 0.

    Raises:
        ValueError: if `codes` is not a matrix of int8, or holds a code that `bits` cannot hold.
    """
    _require(codes, torch.int8, bits)
    rows, cols = codes.shape
    offset = 1 << (bits - 1)
    packed = torch.empty(rows, packed_words(cols, bits), dtype=torch.int32, device=codes.device)
    padded = -(-cols // WORD_BITS) * WORD_BITS
    for begin, end in row_chunks(rows, padded, codes.device):
        # The pad code becomes 0 once the offset is added.
        chunk = codes.new_full((end - begin, padded), -offset)
        chunk[:, :cols] = codes[begin:end]
        if bits < 8:
            low, high = torch.aminmax(chunk) if chunk.numel() else (chunk.new_zeros(()), chunk.new_zeros(()))
            if low < -offset or high >= offset:
                raise ValueError(f"codes lie in [{low}, {high}], but {bits} bits hold [{-offset}, {offset - 1}]")
        lanes = chunk.view(torch.int64)
        lanes.bitwise_xor_(_repeat(offset, 8))
        _fold(lanes, bits)
        unit, taken = _low_units(bits)
        dense = (
            lanes.view(unit).view(end - begin, -1, 8 // unit.itemsize)[..., :taken].contiguous().view(end - begin, -1)
        )
        packed[begin:end] = dense.view(torch.int32)[:, : packed.shape[1]]
    return packed


def unpack(packed: Int32[Tensor, "rows words"], bits: int, cols: int) -> Int8[Tensor, "rows {cols}"]:
    """Undo `pack`.

    Raises:
        ValueError: if `packed` is not a matrix of int32, or has the wrong number of words for `cols`.
    """
    _require(packed, torch.int32, bits)
    rows, words = packed.shape
    if words != packed_words(cols, bits):
        raise ValueError(f"{cols} codes of {bits} bits need {packed_words(cols, bits)} words a row, not {words}")
    codes = torch.empty(rows, cols, dtype=torch.int8, device=packed.device)
    blocks = -(-cols // WORD_BITS)
    for begin, end in row_chunks(rows, blocks * WORD_BITS, packed.device):
        dense = packed.new_zeros(end - begin, blocks * bits)
        dense[:, :words] = packed[begin:end]
        spread = torch.zeros(end - begin, blocks * 4, 8, dtype=torch.uint8, device=packed.device)
        unit, taken = _low_units(bits)
        spread.view(unit)[..., :taken] = dense.view(unit).view(end - begin, -1, taken)
        _unfold(spread.view(torch.int64), bits)
        offset_codes = spread.view(torch.int8).view(end - begin, -1)[:, :cols]
        torch.add(offset_codes, -(1 << (bits - 1)), out=codes[begin:end])
    return codes


def pack_zeros(zeros: Int8[Tensor, "out groups"], bits: int) -> Int32[Tensor, "words groups"]:
    """Pack zero points, which compressed-tensors packs along the outputs."""
    return pack(zeros.t(), bits).t().contiguous()


def unpack_zeros(
    packed: Int32[Tensor, "words groups"], bits: int, out_features: int
) -> Int8[Tensor, "{out_features} groups"]:
    """Undo `pack_zeros`."""
    return unpack(packed.t(), bits, out_features).t().contiguous()


def packed_words(cols: int, bits: int) -> int:
    """How many 32-bit words a row of `cols` codes takes."""
    return -(-cols * bits // WORD_BITS)


def _require(tensor: Tensor, dtype: torch.dtype, bits: int) -> None:
    if bits not in (2, 3, 4, 8):
        raise ValueError(f"codes have 2, 3, 4 or 8 bits, not {bits}")
    if tensor.ndim != 2 or tensor.dtype != dtype:
        raise ValueError(f"expected a matrix of {dtype}, got {tensor.dtype} of shape {list(tensor.shape)}")
    if sys.byteorder != "little":
        raise ValueError("packing is written for little-endian machines only")


def _repeat(pattern: int, width: int) -> int:
    """The int64 that holds `pattern` in each of its lanes of `width` bits."""
    value = sum(pattern << at for at in range(0, 64, width))
    return value - (1 << 64) if value >= 1 << 63 else value


def _low_units(bits: int) -> tuple[torch.dtype, int]:
    """The widest integer type that divides `bits` bytes, and how many of it those bytes are: copies go faster so."""
    return {2: (torch.int16, 1), 3: (torch.uint8, 3), 4: (torch.int32, 1), 8: (torch.int64, 1)}[bits]


def _fold(lanes: Int64[Tensor, "*shape"], bits: int) -> None:
    """Close the gaps between the eight codes of each int64, in place."""
    if bits == 8:
        return
    lanes.bitwise_and_(_repeat((1 << bits) - 1, 8))
    for width in (8, 16, 32):
        filled = bits * width // 8
        lanes.bitwise_or_(lanes >> (width - filled))
        lanes.bitwise_and_(_repeat((1 << 2 * filled) - 1, 2 * width))


def _unfold(lanes: Int64[Tensor, "*shape"], bits: int) -> None:
    """Open the gaps that `_fold` closed, in place."""
    if bits == 8:
        return
    for width in (32, 16, 8):
        filled = bits * width // 8
        lanes.bitwise_or_(lanes << (width - filled))
        lanes.bitwise_and_(_repeat((1 << filled) - 1, width))
