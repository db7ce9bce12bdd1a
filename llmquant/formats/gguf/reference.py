"""A second, independent reading of what was written: plain numpy, from the description of the format.

It shares no code with `blocks` and `llama`. The order of rows is spelled out as a place for each row: in a head of size
D, llama.cpp turns neighbours (2j, 2j + 1) where transformers turns j and j + D/2.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from llmquant.errors import CheckpointError
from llmquant.numerics.quantized import QuantizedTensor


def decode_blocks(name: str, stored: UInt8[Tensor, "out bytes"], bits: int) -> QuantizedTensor:
    """Decode rows of Q8_0 (8 bits) or Q4_0 (4 bits), which keep the order of the file.

    Raises:
        CheckpointError: if a row is no whole number of blocks.
    """
    code_bytes = {8: 32, 4: 16}[bits]
    fields = np.dtype([("scale", "<f2"), ("codes", "u1", code_bytes)])
    raw = np.ascontiguousarray(stored.numpy())
    if raw.shape[1] % fields.itemsize:
        raise CheckpointError(f"{name}: rows of {raw.shape[1]} bytes are no blocks of {fields.itemsize} bytes")
    blocks = raw.view(fields)
    if bits == 8:
        codes = blocks["codes"].view(np.int8)
    else:
        codes = np.empty((*blocks.shape, 32), np.int8)
        for place in range(32):
            byte = blocks["codes"][..., place % 16].astype(np.int16)
            codes[..., place] = (byte // 16 if place >= 16 else byte % 16) - 8
    rows = raw.shape[0]
    return QuantizedTensor(torch.from_numpy(codes.reshape(rows, -1)), torch.from_numpy(blocks["scale"].copy()))


def source_rows(rows: int, heads: int) -> Int64[Tensor, " {rows}"]:
    """For each row of a query or key projection in the file, the row of the checkpoint that it is."""
    place = np.arange(rows)
    size = rows // heads
    head, inside = place // size, place % size
    return torch.from_numpy(head * size + inside % 2 * (size // 2) + inside // 2)
