"""Low-rank changes of a weight: the sum, in float32 whatever autocast says, and not kept for the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmquant.algorithms.rounding import rtn
from llmquant.nn import low_rank
from llmquant.nn.fake_linear import FakeLinear
from llmquant.nn.low_rank import Term, changed, made_again
from llmquant.numerics.fake_quant import fake_quantize
from llmquant.spec import Scheme
from llmquant.statistics.base import LayerStatistics


def terms(*ranks: int) -> list[Term]:
    return [Term(torch.randn(6, rank, requires_grad=True), torch.randn(rank, 32), 0.5) for rank in ranks]


def test_the_sum() -> None:
    weight, two = torch.randn(6, 32), terms(2, 3)
    wanted = weight + sum(scale * b @ a for b, a, scale in two)
    torch.testing.assert_close(changed(weight, two), wanted)
    assert changed(weight, []) is weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(changed(weight, two), changed(weight, two).float())
        torch.testing.assert_close(changed(weight, two), wanted)


def layer() -> Any:
    torch.manual_seed(0)
    dense, scheme = nn.Linear(32, 6, bias=False), Scheme.parse("int4-g32")
    start = rtn.quantize(dense.weight.detach(), LayerStatistics(), scheme, rtn.Options(), scale_dtype=torch.float32)
    fake: Any = FakeLinear(32, 6, None)
    fake.hold(start.quantized, scheme, "lsq", dense.weight)
    fake.adapt(4, 8.0, torch.Generator().manual_seed(3))
    return fake


def test_rounded_with_its_change() -> None:
    fake = layer()
    assert fake.lora_scale == 2
    assert torch.equal(fake.matrix(), fake.base())
    nn.init.normal_(fake.lora_b, std=0.02)
    sum_of_both = fake.base() + 2 * fake.lora_b @ fake.lora_a
    torch.testing.assert_close(fake.matrix(), sum_of_both)
    rounded = fake_quantize(fake.matrix(), fake.scales(), None, fake.scheme, torch.float32)
    assert torch.equal(fake.fake_weight(torch.float32), rounded)
    assert torch.equal(fake.quantized().dequantize(), rounded)
    assert not torch.equal(rounded, fake_quantize(fake.base(), fake.scales(), None, fake.scheme, torch.float32))


def test_gradients_are_those_of_the_sum() -> None:
    fake = layer()
    nn.init.normal_(fake.lora_b, std=0.02)
    towards = torch.randn(6, 32)
    (fake.fake_weight(torch.float32) * towards).sum().backward()
    found = [fake.lora_a.grad, fake.lora_b.grad, fake.weight_scale_change.grad]
    a, b = fake.lora_a.detach().requires_grad_(), fake.lora_b.detach().requires_grad_()
    scales = fake.scales().detach().requires_grad_()
    weight = fake_quantize(fake.base().detach() + 2 * b @ a, scales, None, fake.scheme, torch.float32)
    (weight * towards).sum().backward()
    torch.testing.assert_close(found[0], a.grad)
    torch.testing.assert_close(found[1], b.grad)
    wanted = scales.grad * fake.weight_scale * fake._gradient_scale()
    torch.testing.assert_close(found[2], wanted)


@pytest.mark.parametrize("again", [False, True])
def test_the_sum_is_made_again_instead_of_being_kept(again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, two, scheme = torch.randn(6, 32), terms(2, 3), Scheme.parse("int4-g32")
    scales = torch.full((6, 1), 0.3)
    matrix = changed(weight, two)
    with made_again(matrix, weight, two if again else []):
        rounded = fake_quantize(matrix, scales, None, scheme, torch.float32)
    made: list[Tensor] = []

    def see(weight: Tensor, terms: list[Term]) -> Tensor:
        made.append(changed(weight, terms))
        return made[-1]

    monkeypatch.setattr(low_rank, "changed", see)
    rounded.sum().backward()
    assert [torch.equal(tensor, matrix) for tensor in made] == [True] * again
    assert two[0].b.grad is not None
