"""Blocks of 32 weights of a row, as ggml defines them: a float16 scale, then the codes.

    Q8_0   34 bytes   scale, 32 int8                                          weight = scale * code
    Q4_0   18 bytes   scale, 16 bytes: element j in the low half of byte j,
                      element j + 16 in the high half, each code plus 8        weight = scale * (half - 8)

These are our int8-g32 and int4-g32 with scales of float16, so integers go over as they are. Asymmetric codes and other
groups have no block of their own.
"""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor

from llmquant.errors import CheckpointError, QuantizationError
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

SIZE = 32
SCALE_DTYPE = torch.float16
BLOCKS = {Scheme(8, "group", SIZE): "Q8_0", Scheme(4, "group", SIZE): "Q4_0"}
_SCALE_BYTES = 2


def row_bytes(in_features: int, scheme: Scheme) -> int:
    """Bytes of a row of `in_features` weights, a multiple of 32."""
    return in_features // SIZE * (_SCALE_BYTES + SIZE * scheme.bits // 8)


def encode(name: str, quantized: QuantizedTensor, scheme: Scheme) -> UInt8[Tensor, "out bytes"]:
    """Turn codes and scales, float16, one for 32 inputs, into rows of blocks.

    Raises:
        QuantizationError: if `quantized` does not fit the scheme, or a scale is zero or not finite.
    """
    codes, scales = quantized.codes, quantized.scales
    wanted = (codes.shape[0], codes.shape[1] // SIZE)
    if scheme not in BLOCKS or quantized.zeros is not None or codes.dtype != torch.int8 or codes.shape[1] % SIZE:
        raise QuantizationError(f"{name}: {scheme} with codes {codes.dtype} {list(codes.shape)} has no block in GGUF")
    if scales.dtype != SCALE_DTYPE or tuple(scales.shape) != wanted:
        raise QuantizationError(
            f"{name}: scales are {scales.dtype} {list(scales.shape)}, wanted {SCALE_DTYPE} {list(wanted)}"
        )
    bad = int((~torch.isfinite(scales) | (scales == 0)).sum())
    if bad:
        raise QuantizationError(f"{name}: {bad} of {scales.numel()} scales are zero, infinite or NaN")
    grouped = codes.contiguous().reshape(*wanted, SIZE)
    if scheme.bits == 4:
        halves = (grouped + 8).view(torch.uint8)
        packed = halves[..., : SIZE // 2] | halves[..., SIZE // 2 :] << 4
    else:
        packed = grouped.view(torch.uint8)
    scale_bytes = scales.contiguous().view(torch.uint8).reshape(*wanted, _SCALE_BYTES)
    return torch.cat([scale_bytes, packed], dim=-1).reshape(codes.shape[0], -1)


def decode(name: str, blocks: UInt8[Tensor, "out bytes"], scheme: Scheme) -> QuantizedTensor:
    """Read blocks back; the inverse of `encode`.

    Raises:
        CheckpointError: if the rows are no whole blocks of this scheme.
    """
    size = row_bytes(SIZE, scheme)
    if blocks.dtype != torch.uint8 or blocks.ndim != 2 or blocks.shape[1] % size:
        raise CheckpointError(f"{name}: {blocks.dtype} {list(blocks.shape)} are no rows of {BLOCKS[scheme]} blocks")
    rows = blocks.shape[0]
    grouped = blocks.reshape(rows, -1, size)
    scales = grouped[..., :_SCALE_BYTES].contiguous().view(SCALE_DTYPE).reshape(rows, -1)
    packed = grouped[..., _SCALE_BYTES:]
    if scheme.bits == 4:
        codes = torch.cat([packed & 15, packed >> 4], dim=-1).view(torch.int8) - 8
    else:
        codes = packed.contiguous().view(torch.int8)
    return QuantizedTensor(codes.reshape(rows, -1), scales)
