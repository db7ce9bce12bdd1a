"""Bytes of quantized weights, against the tensors that are written."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmquant.formats.compressed_tensors.bytes import SHAPE_BYTES, payload_bytes, stored_bytes
from llmquant.formats.compressed_tensors.codec import encode
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("int4-g32", 4.5),
        ("int4-g128", 4.125),
        ("int3-g32", 3.5),
        ("int8-g128", 8.125),
        ("int8", 8 + 16 / 4096),
        ("w8a8-dynamic", 8 + 16 / 4096),
        ("int4-g128-asym", 4 + (16 + 4) / 128),
    ],
)
def test_bits_per_weight_of_a_bf16_layer(name: str, bits: float) -> None:
    assert 8 * payload_bytes((4096, 4096), Scheme.parse(name), torch.bfloat16) / 4096**2 == bits


def test_shape_is_stored_for_packed_weights_only() -> None:
    packed, plain = Scheme.parse("int8"), Scheme.parse("w8a8-dynamic")
    assert stored_bytes((8, 64), packed, torch.bfloat16) == 8 * 64 + 8 * 2 + SHAPE_BYTES
    assert stored_bytes((8, 64), plain, torch.bfloat16) == 8 * 64 + 8 * 2


@given(
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from(["", "-g4", "-g32", "-tensor"]),
    st.booleans(),
    st.integers(1, 70),
    st.integers(1, 5),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_bytes_equal_those_written(
    bits: int, size: str, asym: bool, out_features: int, groups: int, dtype: torch.dtype
) -> None:
    scheme = Scheme.parse(f"int{bits}{size}{'-asym' if asym else ''}")
    in_features = groups * (scheme.group_size or 7)
    grid = scheme.scale_shape(out_features, in_features)
    quantized = QuantizedTensor(
        torch.zeros(out_features, in_features, dtype=torch.int8),
        torch.ones(grid, dtype=dtype),
        torch.zeros(grid, dtype=torch.int8) if asym else None,
    )
    written = sum(tensor.numel() * tensor.itemsize for tensor in encode("layer", quantized, scheme).values())
    assert stored_bytes((out_features, in_features), scheme, dtype) == written
