from __future__ import annotations

import numpy as np
import pytest
import torch

from llmquant.errors import CheckpointError
from llmquant.formats.compressed_tensors.codec import encode
from llmquant.formats.compressed_tensors.reference import decode_reference, unpack_rows
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme


def naive_pack(codes: list[list[int]], bits: int) -> np.ndarray:
    """Python integers of any length: a row is one number."""
    rows = []
    for row in codes:
        number = sum((code + (1 << (bits - 1))) << (bits * index) for index, code in enumerate(row))
        words = -(-len(row) * bits // 32)
        rows.append([number >> (32 * word) & 0xFFFFFFFF for word in range(words)])
    return np.array(rows, np.uint32).view(np.int32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 7, 10, 11, 32, 33, 64])
def test_unpack_rows(bits: int, count: int) -> None:
    codes = np.random.randint(-(1 << (bits - 1)), 1 << (bits - 1), (5, count))  # noqa: NPY002 - seeded by conftest
    assert np.array_equal(unpack_rows(naive_pack(codes.tolist(), bits), bits, count), codes)


def test_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmquant.formats.compressed_tensors.reference._CODES_AT_ONCE", 20)
    codes = np.random.randint(-4, 4, (7, 10))  # noqa: NPY002
    assert np.array_equal(unpack_rows(naive_pack(codes.tolist(), 3), 3, 10), codes)


@pytest.mark.parametrize("words", [0, 2, 4])
def test_wrong_row_length(words: int) -> None:
    with pytest.raises(CheckpointError, match="do not fill"):
        unpack_rows(np.zeros((2, words), np.int32), 3, 30)


@pytest.mark.parametrize(
    "name",
    [
        "int2-g32",
        "int3-g32-asym",
        "int4",
        "int4-g32-asym",
        "int8-asym",
        "int8-tensor",
        "int4-tensor-asym",
        "w8a8-dynamic",
    ],
)
def test_decodes_what_encode_writes(name: str) -> None:
    scheme = Scheme.parse(name)
    shape = scheme.scale_shape(13, 96)
    low, high = scheme.code_min, scheme.code_max + 1
    zeros = None if scheme.symmetric else torch.randint(low, high, shape).to(torch.int8)
    quantized = QuantizedTensor(torch.randint(low, high, (13, 96)).to(torch.int8), torch.rand(shape) + 0.1, zeros)
    tensors = encode("a.b", quantized, scheme)
    decoded = decode_reference("a.b", tensors, scheme)
    assert torch.equal(decoded.codes, quantized.codes)
    assert torch.equal(decoded.scales, quantized.scales)
    assert (decoded.zeros is None) == (zeros is None)
    if decoded.zeros is not None and zeros is not None:
        assert torch.equal(decoded.zeros, zeros)
    if "a.b.weight_shape" in tensors:
        with pytest.raises(CheckpointError, match="rows"):
            decode_reference("a.b", tensors | {"a.b.weight_shape": torch.tensor([12, 96])}, scheme)
    with pytest.raises(CheckpointError, match="lacks weight_scale"):
        decode_reference("a.b", {key: value for key, value in tensors.items() if "scale" not in key}, scheme)
