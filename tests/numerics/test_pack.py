"""Packing against known words, against a loop over single bits, and against compressed-tensors itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmquant.numerics.pack import pack, pack_zeros, packed_words, unpack, unpack_zeros

BITS = (2, 3, 4, 8)


def random_codes(bits: int, rows: int, cols: int) -> Tensor:
    half = 1 << (bits - 1)
    return torch.randint(-half, half, (rows, cols), dtype=torch.int8)


def pack_by_bits(codes: Tensor, bits: int) -> Tensor:
    """Set one bit at a time."""
    rows = []
    for row in codes.tolist():
        stream = 0
        for index, code in enumerate(row):
            stream |= (code + (1 << (bits - 1))) << (index * bits)
        words = [(stream >> (32 * word)) & 0xFFFFFFFF for word in range(-(-len(row) * bits // 32))]
        rows.append([word - (1 << 32) if word >= 1 << 31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


def test_known_words() -> None:
    assert pack(torch.tensor([[-8, -7, -6, -5, -4, -3, -2, -1]], dtype=torch.int8), 4).item() == 0x76543210
    assert pack(torch.tensor([[-128, -127, -126, -125]], dtype=torch.int8), 8).item() == 0x03020100
    zeros = torch.tensor([[-8], [-7], [0], [7], [1], [2], [3], [4]], dtype=torch.int8)
    packed = pack_zeros(zeros, 4)
    assert packed.shape == (1, 1)
    assert int(packed) & 0xFFFFFFFF == 0xCBA9F810


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("cols", [1, 5, 8, 10, 11, 31, 32, 33, 43, 64, 100, 172])
def test_equals_loop_over_bits(bits: int, cols: int) -> None:
    codes = random_codes(bits, 3, cols)
    assert torch.equal(pack(codes, bits), pack_by_bits(codes, bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (40, 172), (9, 256)])
def test_equals_compressed_tensors(bits: int, shape: tuple[int, int]) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = random_codes(bits, *shape)
    assert torch.equal(pack(codes, bits), helpers.pack_to_int32(codes, bits))
    zeros = pack_zeros(codes, bits)
    assert torch.equal(zeros, helpers.pack_to_int32(codes, bits, packed_dim=0))
    assert zeros.is_contiguous()


@settings(max_examples=60)
@given(bits=st.sampled_from(BITS), rows=st.integers(1, 9), cols=st.integers(1, 140), seed=st.integers(0, 2**31))
def test_round_trip(bits: int, rows: int, cols: int, seed: int) -> None:
    torch.manual_seed(seed)
    codes = random_codes(bits, rows, cols)
    packed = pack(codes, bits)
    assert packed.dtype == torch.int32
    assert packed.shape == (rows, packed_words(cols, bits))
    assert torch.equal(unpack(packed, bits, cols), codes)
    zeros = pack_zeros(codes, bits)
    assert zeros.shape == (packed_words(rows, bits), cols)
    assert torch.equal(unpack_zeros(zeros, bits, rows), codes)


@pytest.mark.parametrize("bits", BITS)
def test_chunks_do_not_show(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = random_codes(bits, 21, 100)
    whole = pack(codes, bits)
    monkeypatch.setattr("llmquant.numerics.threads._CPU_CHUNK", 300)
    assert torch.equal(pack(codes, bits), whole)
    assert torch.equal(unpack(whole, bits, 100), codes)


def test_reads_views_and_leaves_them_alone() -> None:
    codes = random_codes(4, 24, 40)
    kept = codes.clone()
    view = codes.t()[:, ::2]
    assert torch.equal(pack(view, 4), pack(view.contiguous(), 4))
    assert torch.equal(codes, kept)
    assert pack(codes[:0], 4).shape == (0, 5)


@pytest.mark.usefixtures("shapes_unchecked")
def test_refuses_what_it_cannot_pack() -> None:
    with pytest.raises(ValueError, match=r"codes lie in \[-9, 0\], but 4 bits hold \[-8, 7\]"):
        pack(torch.tensor([[0, -9]], dtype=torch.int8), 4)
    with pytest.raises(ValueError, match=r"codes lie in \[-2, 2\], but 2 bits hold"):
        pack(torch.tensor([[2, 0]], dtype=torch.int8), 2)
    with pytest.raises(ValueError, match="2, 3, 4 or 8 bits, not 5"):
        pack(torch.zeros(1, 1, dtype=torch.int8), 5)
    with pytest.raises(ValueError, match=r"matrix of torch\.int8, got torch\.int32"):
        pack(torch.zeros(1, 1, dtype=torch.int32), 4)
    with pytest.raises(ValueError, match="9 codes of 4 bits need 2 words a row, not 1"):
        unpack(torch.zeros(1, 1, dtype=torch.int32), 4, 9)
