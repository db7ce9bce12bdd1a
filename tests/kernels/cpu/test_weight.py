"""Weights in kernel layout: back to the checkpoint's tensors bit for bit, and what cannot be brought there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmquant.errors import LlmquantError
from llmquant.kernels.cpu import native
from llmquant.kernels.cpu import weight as cpu_weight
from llmquant.kernels.product import PackedWeight
from llmquant.numerics.pack import pack, pack_zeros
from llmquant.spec import BITS

pytestmark = pytest.mark.skipif(native.library() is None, reason="the C++ kernels are not installed")


def bits_of(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().view(torch.uint8).flatten().tolist()


@settings(max_examples=80)
@given(
    bits=st.sampled_from(BITS),
    rows=st.integers(1, 70),
    blocks=st.integers(1, 3),
    group=st.sampled_from([32, 64, 96, 128, 256, None]),
    tail=st.integers(0, 31),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    asymmetric=st.booleans(),
    per_tensor=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_restores_every_bit(bits, rows, blocks, group, tail, dtype, asymmetric, per_tensor, seed) -> None:
    torch.manual_seed(seed)
    cols = group * blocks if group else 32 * blocks + tail
    codes = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (rows, cols), dtype=torch.int8)
    shape = (1,) if per_tensor else (rows, blocks if group else 1)
    # Any bits, NaN among them: nothing may be computed on the way.
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    scale = torch.randint(torch.iinfo(integer).min, torch.iinfo(integer).max, shape, dtype=integer).view(dtype)
    zeros = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), shape, dtype=torch.int8) if asymmetric else None
    stored_zero = zeros if zeros is None or per_tensor else pack_zeros(zeros, bits)
    packed = pack(codes, bits)
    prepared = cpu_weight.prepare(PackedWeight(packed, scale, stored_zero, bits, cols))
    again, scale_again, zero_again, *_ = cpu_weight.restore(prepared)
    assert torch.equal(packed, again)
    assert scale_again.dtype == dtype
    assert scale_again.shape == scale.shape
    assert bits_of(scale_again) == bits_of(scale)
    assert (zero_again is None) == (stored_zero is None)
    assert stored_zero is None or torch.equal(zero_again, stored_zero)  # pyright: ignore[reportArgumentType]


def test_header(make_packed: Callable) -> None:
    p = make_packed("int3-g64-asym", 7, 192, torch.bfloat16)
    has = cpu_weight.header(cpu_weight.prepare(p.stored))
    assert has == cpu_weight.Header(3, 64, torch.bfloat16, 7, 192, 3, False, True)


def test_rows_are_those_of_the_checkpoint(make_packed: Callable) -> None:
    for scheme in ("int8", "int4-g32-asym", "int3-g64"):
        p = make_packed(scheme, 45, 128, torch.float16)
        prepared = cpu_weight.prepare(p.stored)
        ids = torch.tensor([[44, 0], [31, 44]])
        rows = torch.ops.llmquant.cpu_embedding.default(ids, prepared, 128, torch.float16)
        dense = torch.ops.llmquant.dequantize_int.default(p.packed, p.scale, p.zero, p.scheme.bits, 128, torch.float16)
        assert torch.equal(rows, dense[ids])
        with pytest.raises(IndexError, match="rows of 0 to 45 are asked for; there are 45"):
            torch.ops.llmquant.cpu_embedding.default(torch.tensor([45, 0]), prepared, 128, torch.float16)


def test_what_cannot_be_prepared(make_packed: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    p = make_packed("int4-g8", 5, 24)
    assert cpu_weight.why_not(p.stored) == "groups of 8, not a multiple of 32"
    with pytest.raises(LlmquantError, match="groups of 8, not a multiple of 32"):
        cpu_weight.prepare(p.stored)
    p = make_packed("int4", 5, 24, torch.float64)
    assert cpu_weight.why_not(p.stored) == "scales of torch.float64"
    p = make_packed("int4", 5, 24)
    meta = p.packed.to("meta"), p.scale.to("meta")
    assert cpu_weight.why_not(PackedWeight(*meta, None, 4, 24)) == "the weight is on meta"
    assert cpu_weight.why_not(p.stored) is None
    one = torch.ones(1, 1)
    assert cpu_weight.why_not(PackedWeight(p.packed, one, None, 4, 24)) == "one scale of shape [1, 1], not [1]"
    monkeypatch.setattr(native, "wanted", lambda: False)
    assert cpu_weight.why_not(p.stored) == "the C++ kernels are off"


def test_other_bytes_are_refused(make_packed: Callable) -> None:
    for wrong in (torch.zeros(64, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8), torch.zeros(64)):
        with pytest.raises(LlmquantError, match="prepared weight"):
            cpu_weight.restore(wrong)
    p = make_packed("int4", 5, 24)
    prepared = cpu_weight.prepare(p.stored)
    broken = prepared.clone()
    broken[8:12] = torch.tensor([0, 16, 0, 0])  # a block of 4096
    empty = torch.empty(0, dtype=torch.uint8)
    for wrong in (prepared[:64], broken, empty):
        with pytest.raises(LlmquantError, match="prepared weight"):
            cpu_weight.restore(wrong)
    for wrong in (broken, empty):
        with pytest.raises(LlmquantError, match="does not have the inputs"):
            torch.ops.llmquant.cpu_linear.default(torch.ones(1, 24), wrong, None, 5, True)
    with torch.device("meta"):
        assert torch.equal(cpu_weight.restore(prepared)[0], p.packed)
    for x, out_features in ((torch.ones(1, 25), 5), (torch.ones(1, 24), 6)):
        with pytest.raises(LlmquantError, match="does not have the inputs"):
            torch.ops.llmquant.cpu_linear.default(x, prepared, None, out_features, True)


def test_an_unknown_choice_of_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMQUANT_CPU_KERNELS", "fastest")
    with pytest.raises(LlmquantError, match="LLMQUANT_CPU_KERNELS is 'fastest'"):
        native.wanted.__wrapped__()
