"""What a packed weight and a product say of themselves; whoever computes with them is tested with its device."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from llmquant.kernels.product import PackedWeight, Product


@pytest.mark.parametrize("name", ["int4-g32-asym", "int3-g32-asym", "int8-tensor-asym"])
def test_zeros_are_those_that_were_packed(make_packed: Callable, name: str) -> None:
    p = make_packed(name, 5, 64)
    zeros = p.stored.zeros()
    assert zeros.dtype == torch.int8
    assert torch.equal(zeros, p.zeros)
    assert p.stored.out_features == 5
    assert p.stored.group == 64 // p.scales.shape[1]
    assert make_packed("int4", 5, 64).stored.zeros() is None


def test_one_scale_for_all_outputs_has_one_dimension() -> None:
    packed = torch.zeros(2, 1, dtype=torch.int32)
    for scale, zero, unclear in (
        (torch.ones(1), None, None),
        (torch.ones(1, 1), None, "one scale of shape [1, 1], not [1]"),
        (torch.ones(1), torch.zeros(1, 1, dtype=torch.int8), "one scale of shape [1], not [1]"),
        (torch.ones(2, 1), None, None),
    ):
        assert PackedWeight(packed, scale, zero, 4, 8).why_unclear() == unclear
    assert PackedWeight(packed[:1], torch.ones(1, 1), None, 4, 8).why_unclear() is None, "a single output"


def test_what_is_no_weight_is_refused_with_what_was_got(make_packed: Callable) -> None:
    stored = make_packed("int4-g32-asym", 5, 64).stored
    stored.check()
    for wrong in (
        stored._replace(bits=5),
        stored._replace(in_features=72),
        stored._replace(scale=stored.scale[:4]),
        stored._replace(zero=stored.zero.float()),
        stored._replace(packed=stored.packed[:, 1:]),
    ):
        with pytest.raises(RuntimeError, match=r"packed int32 \[out_features, .*; got packed"):
            wrong.check()


def test_results_have_the_widths_of_the_outputs() -> None:
    product = Product([], [], [3, 3])
    x = torch.empty(2, 4, 8, dtype=torch.bfloat16)
    assert [out.shape for out in product.empty(x)] == [(2, 4, 3), (2, 4, 3)]
    (out,) = product._replace(silu=True).empty(x, torch.float32)
    assert (out.shape, out.dtype) == ((2, 4, 3), torch.float32)


def test_what_does_not_fit_together_is_refused() -> None:
    x, weight = torch.ones(2, 8), torch.zeros(1)
    good = Product([weight], [torch.ones(3)], [3], norm=torch.ones(8), residual=torch.ones(2, 6)[:, ::2])
    good.check(x, most=1)
    two = Product([weight] * 2, [], [3, 3], silu=True, residual=torch.ones(2, 3))
    two.check(x, most=2)
    for wrong, words in (
        (good._replace(weights=[weight] * 2), "got 2 weights of [3]"),
        (good._replace(biases=[torch.ones(3, dtype=torch.half)]), "the bias is torch.float32 [3]"),
        (good._replace(biases=[torch.ones(6)[::2]]), "of strides (2,)"),
        (good._replace(norm=torch.ones(3)), "the norm is torch.float32 [8]"),
        (good._replace(residual=torch.ones(2, 4)), "the residual is torch.float32 [2, 3]"),
        (good._replace(residual=torch.ones(2, 3, device="meta")), "on meta"),
        (two._replace(silu=False), "a residual for a single result"),
        (two._replace(out_features=[3, 4]), "two of one size with silu"),
    ):
        with pytest.raises(RuntimeError, match=re.escape(words)):
            wrong.check(x, most=2)
    with pytest.raises(RuntimeError, match="one to 1 weights"):
        two.check(x, most=1)
