"""Blocks of Q8_0 and Q4_0: there and back, the independent reading, and what has no block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmquant.errors import CheckpointError, QuantizationError
from llmquant.formats.gguf.blocks import BLOCKS, decode, encode, row_bytes
from llmquant.formats.gguf.reference import decode_blocks, source_rows
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

INT4, INT8 = Scheme.parse("int4-g32"), Scheme.parse("int8-g32")


def weight(scheme: Scheme, rows: int, groups: int, seed: int = 0) -> QuantizedTensor:
    """Every code, both ends included, and scales of both signs."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(scheme.code_min, scheme.code_max + 1, (rows, groups * 32), generator=generator)
    codes[0, :2] = torch.tensor([scheme.code_min, scheme.code_max])
    scales = torch.randn(rows, groups, generator=generator).half()
    return QuantizedTensor(codes.to(torch.int8), torch.where(scales == 0, 1.0, scales))


def same(one: QuantizedTensor, other: QuantizedTensor) -> bool:
    return torch.equal(one.codes, other.codes) and torch.equal(one.scales, other.scales) and other.zeros is None


@given(st.sampled_from(list(BLOCKS)), st.integers(1, 5), st.integers(1, 4), st.integers(0, 1000))
def test_there_and_back(scheme: Scheme, rows: int, groups: int, seed: int) -> None:
    meant = weight(scheme, rows, groups, seed)
    blocks = encode("layer", meant, scheme)
    assert blocks.dtype == torch.uint8
    assert blocks.shape == (rows, row_bytes(groups * 32, scheme))
    assert same(meant, decode("layer", blocks, scheme))
    assert same(meant, decode_blocks("layer", blocks, scheme.bits))


def test_the_bytes_of_a_block() -> None:
    """1.0 is 0x3c00; element j of Q4_0 lies in the low half of byte j, element j + 16 in the high half."""
    codes = torch.zeros(1, 32, dtype=torch.int8)
    codes[0, 3], codes[0, 19] = -8, 7
    block = encode("layer", QuantizedTensor(codes, torch.ones(1, 1, dtype=torch.half)), INT4)[0].tolist()
    assert block == [0x00, 0x3C, *[0x88] * 3, 0xF0, *[0x88] * 12]
    block = encode("layer", QuantizedTensor(codes, torch.ones(1, 1, dtype=torch.half)), INT8)[0].tolist()
    assert block[:2] + block[5:6] + block[21:22] == [0x00, 0x3C, 0xF8, 0x07]
    assert sum(block) == 0x3C + 0xF8 + 0x07


def test_rows_in_any_order_of_memory() -> None:
    meant = weight(INT4, 6, 2)
    turned = QuantizedTensor(meant.codes.T.contiguous().T, meant.scales.T.contiguous().T)
    assert torch.equal(encode("layer", turned, INT4), encode("layer", meant, INT4))
    strided = torch.cat([encode("layer", meant, INT4)] * 2, dim=1)[:, : row_bytes(64, INT4)]
    assert same(meant, decode("layer", strided, INT4))
    assert same(meant, decode_blocks("layer", strided, 4))


@pytest.mark.parametrize("bad", [0.0, float("inf"), float("nan")])
def test_scales_that_are_none(bad: float) -> None:
    meant = weight(INT8, 2, 2)
    meant.scales[1, 1] = bad
    with pytest.raises(QuantizationError, match="layer: 1 of 4 scales are zero, infinite or NaN"):
        encode("layer", meant, INT8)


CODES, SCALES = torch.zeros(2, 64, dtype=torch.int8), torch.ones(2, 2, dtype=torch.half)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("codes", "scales", "zeros", "scheme", "words"),
    [
        (CODES, SCALES.bfloat16(), None, "int4-g32", "scales are torch.bfloat16"),
        (CODES, SCALES[:1], None, "int4-g32", r"scales are torch.float16 \[1, 2\]"),
        (CODES, SCALES, SCALES.to(torch.int8), "int4-g32", "no block"),
        (CODES.int(), SCALES, None, "int4-g32", "no block"),
        (CODES[:, :48], SCALES, None, "int4-g32", "no block"),
        (CODES, SCALES, None, "int4-g64", "int4-g64 with codes"),
    ],
)
def test_what_has_no_block(codes: Tensor, scales: Tensor, zeros: Tensor | None, scheme: str, words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        encode("layer", QuantizedTensor(codes, scales, zeros), Scheme.parse(scheme))


def test_rows_that_are_no_blocks() -> None:
    for read in (lambda: decode("layer", torch.zeros(2, 19, dtype=torch.uint8), INT4),
                 lambda: decode_blocks("layer", torch.zeros(2, 19, dtype=torch.uint8), 4)):  # fmt: skip
        with pytest.raises(CheckpointError, match="layer"):
            read()


def test_where_rows_of_queries_come_from() -> None:
    """Two heads of six: neighbours in the file are j and j + 3 of the checkpoint."""
    assert source_rows(12, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
