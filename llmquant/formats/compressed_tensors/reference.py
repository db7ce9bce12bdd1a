"""A second, independent decoder, used to check what was written. Plain numpy, and slow to go wrong rather than fast.

It shares no code with `numerics.pack`, and reads the layout from its description: a row is a stream of bits, lowest
bit of the first word first; code i is the number in bits b*i to b*i + b - 1, less 2^(b-1).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Int8, Int32
from torch import Tensor

from llmquant.errors import CheckpointError
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

_CODES_AT_ONCE = 1 << 18  # keeps the eight times longer stream of bits small


def decode_reference(name: str, tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedTensor:
    """Decode one module from its tensors, as read from the file, under their full names.

    Raises:
        CheckpointError: if a tensor is missing or has an impossible size.
    """
    wanted = ["weight", "weight_scale"] if scheme.activations else ["weight_packed", "weight_scale", "weight_shape"]
    if not scheme.symmetric:
        wanted.append("weight_zero_point")
    missing = [suffix for suffix in wanted if f"{name}.{suffix}" not in tensors]
    if missing:
        raise CheckpointError(f"{name}: the file lacks {', '.join(missing)}")
    scales = tensors[f"{name}.weight_scale"]
    if scheme.activations:
        return QuantizedTensor(tensors[f"{name}.weight"], scales)

    out_features, in_features = (int(size) for size in tensors[f"{name}.weight_shape"].tolist())
    codes = unpack_rows(tensors[f"{name}.weight_packed"].numpy(), scheme.bits, in_features)
    if codes.shape[0] != out_features:
        raise CheckpointError(f"{name}: weight_packed has {codes.shape[0]} rows, weight_shape says {out_features}")
    if scheme.granularity == "tensor":
        zeros = None if scheme.symmetric else tensors[f"{name}.weight_zero_point"].reshape(1, 1)
        return QuantizedTensor(torch.from_numpy(codes), scales.reshape(1, 1), zeros)
    zeros = None
    if not scheme.symmetric:
        columns = tensors[f"{name}.weight_zero_point"].numpy()
        # Zeros are packed along out_features, so a column of words is the row of a stream.
        zeros = torch.from_numpy(unpack_rows(columns.T, scheme.bits, out_features).T.copy())
    return QuantizedTensor(torch.from_numpy(codes), scales, zeros)


def unpack_rows(words: Int32[np.ndarray, "rows words"], bits: int, count: int) -> Int8[np.ndarray, "rows {count}"]:
    """Decode rows of `count` codes.

    Raises:
        CheckpointError: if a row has not exactly the words that `count` codes fill.
    """
    rows = words.shape[0]
    if words.ndim != 2 or words.shape[1] * 32 - count * bits not in range(32):
        raise CheckpointError(f"{count} codes of {bits} bits do not fill rows of {words.shape[1:]} 32-bit words")
    codes = np.empty((rows, count), np.int8)
    step = max(1, _CODES_AT_ONCE // max(count, 1))
    for begin in range(0, rows, step):
        block = np.ascontiguousarray(words[begin : begin + step]).astype("<i4")
        stream = np.unpackbits(block.view(np.uint8), axis=1, bitorder="little")[:, : count * bits]
        value = np.zeros((block.shape[0], count), np.uint8)
        for bit in range(bits):
            value |= stream[:, bit::bits] << np.uint8(bit)
        codes[begin : begin + step] = value.astype(np.int16) - (1 << (bits - 1))
    return codes
