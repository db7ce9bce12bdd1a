"""Bytes of a quantized weight in the compressed-tensors layout that llmquant writes.

`pack-quantized`: codes in int32 words, row by row; scales in the model's dtype; zero points packed along out_features
(one plain byte for a whole tensor); the original shape as two int64.
`int-quantized` (8-bit activations): one byte per code, scales, no shape.
"""

from __future__ import annotations

import torch

from llmquant.spec import Scheme

SHAPE_BYTES = 16


def payload_bytes(shape: tuple[int, int], scheme: Scheme, scale_dtype: torch.dtype) -> int:
    """Bytes of codes, scales and zero points of a weight (out_features, in_features)."""
    out_features, in_features = shape
    rows, groups = scheme.scale_shape(out_features, in_features)
    scales = rows * groups * scale_dtype.itemsize
    if scheme.activations:
        return out_features * in_features + scales
    codes = out_features * _words(in_features, scheme.bits) * 4
    return codes + scales + _zero_bytes(rows, groups, scheme)


def stored_bytes(shape: tuple[int, int], scheme: Scheme, scale_dtype: torch.dtype) -> int:
    """Bytes of all tensors that stand for a weight, its recorded shape included."""
    return payload_bytes(shape, scheme, scale_dtype) + (0 if scheme.activations else SHAPE_BYTES)


def _zero_bytes(rows: int, groups: int, scheme: Scheme) -> int:
    if scheme.symmetric:
        return 0
    return 1 if scheme.granularity == "tensor" else _words(rows, scheme.bits) * groups * 4


def _words(values: int, bits: int) -> int:
    return -(-values * bits // 32)
