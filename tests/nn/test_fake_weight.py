"""A fake-quantized weight starts as the rounded one, learns, and ends as integers of the same values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmquant.algorithms.rounding import rtn
from llmquant.errors import QuantizationError
from llmquant.nn.fake_linear import FakeLinear
from llmquant.nn.fake_weight import MOMENTUM
from llmquant.numerics.grid import choose_grid
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme
from llmquant.statistics.base import LayerStatistics

RANGES = ["frozen", "minmax", "moving-average", "lsq", "scales-only"]


def rounded(weight: torch.Tensor, name: str, dtype: torch.dtype = torch.float32) -> QuantizedTensor:
    options = rtn.Options()
    return rtn.quantize(weight, LayerStatistics(), Scheme.parse(name), options, scale_dtype=dtype).quantized


def fake(name: str = "int4-g32", ranges: str = "lsq", dtype: torch.dtype = torch.float32, **start) -> FakeLinear:
    torch.manual_seed(0)
    weight = torch.randn(16, 64).to(dtype)
    layer = FakeLinear(64, 16, None)
    codes = start.get("codes")
    first = rounded(weight, name, dtype)
    first = first if codes is None else QuantizedTensor(codes(first.codes), first.scales, first.zeros)
    layer.hold(first, Scheme.parse(name), ranges, nn.Parameter(weight))
    return layer


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["int4-g32", "int3-g16-asym", "int8", "int4-tensor"])
def test_it_starts_from_codes_that_were_chosen_cleverly(name: str, dtype: torch.dtype, ranges: str) -> None:
    scheme = Scheme.parse(name)

    def moved(codes: torch.Tensor) -> torch.Tensor:  # as GPTQ does, away from the nearest
        return (codes + torch.randint(-1, 2, codes.shape)).clamp(scheme.code_min, scheme.code_max).to(torch.int8)

    layer = fake(name, ranges, dtype, codes=moved).eval()
    found = layer.quantized()
    torch.manual_seed(0)
    start = rounded(torch.randn(16, 64).to(dtype), name, dtype)
    torch.manual_seed(0)
    torch.randn(16, 64)
    assert torch.equal(found.codes, moved(start.codes))
    assert torch.equal(found.scales, start.scales)
    assert torch.equal(layer.fake_weight(dtype), found.dequantize())


def test_a_weight_moves_no_farther_than_it_must() -> None:
    layer = fake()
    torch.manual_seed(0)
    assert layer.weight is not None
    moved = layer.weight.detach() - torch.randn(16, 64)
    step = rounded(torch.randn(16, 64), "int4-g32").scales.abs().max()
    assert 0 < int((moved.abs() > 1e-6).sum()) < moved.numel() / 5  # what lies near a boundary
    assert float(moved.abs().max()) < 0.56 * float(step)  # what lay beyond the last code


@pytest.mark.parametrize("ranges", RANGES)
def test_what_learns(ranges: str) -> None:
    layer = fake(ranges=ranges)
    before = layer.quantized()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(8, 64)).square().sum().backward()
        optimizer.step()
    after = layer.quantized()
    assert torch.equal(before.codes, after.codes) == (ranges == "scales-only")
    assert torch.equal(before.scales, after.scales) == (ranges == "frozen")


def test_frozen_ranges_stay() -> None:
    for ranges in ("minmax", "moving-average", "lsq", "scales-only"):
        layer = fake(ranges=ranges)
        layer.ranges_frozen = True
        layer(torch.randn(8, 64)).sum().backward()
        change = layer.weight_scale_change
        assert change is None or (change.grad is not None and not change.grad.any())  # DDP waits for one
        if layer.weight is not None:
            layer.weight.data.mul_(3)
        before = layer.weight_scale.clone()
        layer(torch.randn(8, 64))
        assert torch.equal(before, layer.weight_scale)


def test_followed_ranges_are_those_of_the_weights() -> None:
    now, average = fake(ranges="minmax"), fake(ranges="moving-average")
    for layer in (now, average):
        assert layer.weight is not None
        start = layer.weight_scale.clone()
        layer.weight.data.mul_(3)
        layer(torch.randn(2, 64))
        wanted = choose_grid(layer.weight.detach(), layer.scheme, scale_dtype=torch.float32).scales
        share = 1.0 if layer is now else MOMENTUM
        torch.testing.assert_close(layer.weight_scale, torch.lerp(start, wanted, share))
        layer.eval()
        layer.weight.data.mul_(3)
        layer(torch.randn(2, 64))
        torch.testing.assert_close(layer.weight_scale, torch.lerp(start, wanted, share))


def test_a_moving_average_is_of_magnitudes_and_zero_points_follow() -> None:
    layer = fake(ranges="moving-average")
    assert layer.weight is not None
    start = layer.weight_scale.clone()
    layer.weight.data.mul_(-3)  # the longer end is on the other side
    layer(torch.randn(2, 64))
    wanted = choose_grid(layer.weight.detach(), layer.scheme, scale_dtype=torch.float32).scales
    assert (start * wanted < 0).any()
    torch.testing.assert_close(layer.weight_scale, wanted.sign() * torch.lerp(start.abs(), wanted.abs(), MOMENTUM))
    layer = fake("int4-g32-asym", "minmax")
    assert layer.weight is not None
    layer.weight.data.add_(1)
    layer(torch.randn(2, 64))
    grid = choose_grid(layer.weight.detach(), layer.scheme, scale_dtype=torch.float32)
    assert grid.zeros is not None
    assert layer.weight_zero_point is not None
    assert torch.equal(layer.weight_zero_point, grid.zeros)


def test_ranges_follow_low_rank_changes_that_start_small() -> None:
    layer = fake(ranges="minmax")
    layer.adapt(4, 8.0, torch.Generator().manual_seed(1))
    assert layer.lora_a is not None
    assert layer.lora_b is not None
    assert 0.9 / 8 < float(layer.lora_a.detach().abs().max()) <= 1 / 8  # 1/sqrt(64): uniform, as peft's
    layer.lora_b.data.normal_()
    layer(torch.randn(2, 64))
    wanted = choose_grid(layer.matrix().detach(), layer.scheme, scale_dtype=torch.float32).scales
    assert torch.equal(layer.weight_scale, wanted)


def test_the_gradient_of_scales_is_scaled_as_in_lsq() -> None:
    layer = fake("int4-g32")
    reads = layer.fake_weight(torch.float32)
    reads.sum().backward()
    change = layer.weight_scale_change
    assert change is not None
    assert change.grad is not None
    assert layer.weight is not None
    found = layer.quantized()
    steps = layer.weight.detach().view(16, 2, 32) / layer.weight_scale.unsqueeze(-1)
    wanted = (found.codes.view(16, 2, 32) - steps).sum(-1) * layer.weight_scale / (32 * 7) ** 0.5
    torch.testing.assert_close(change.grad, wanted)


def test_without_rounding_it_is_the_dense_layer() -> None:
    layer = fake()
    layer.fake_quant = False
    x = torch.randn(3, 64)
    assert layer.weight is not None
    assert torch.equal(layer(x), x @ layer.weight.T)


def test_what_diverged_is_not_stored() -> None:
    layer = fake()
    assert layer.weight is not None
    layer.weight.data[3, 5] = torch.nan
    with pytest.raises(QuantizationError, match="lower the learning rate"):
        layer.quantized()
    layer = fake(ranges="scales-only")
    assert layer.weight_scale_change is not None
    layer.weight_scale_change.data[3, 1] = torch.inf
    with pytest.raises(QuantizationError, match="learning rate of scales"):
        layer.quantized()


def test_small_steps_add_up_in_16_bits_too() -> None:
    layer = fake(dtype=torch.bfloat16)
    assert layer.weight is not None
    assert layer.weight.dtype == torch.float32
    assert layer(torch.randn(2, 64).bfloat16()).dtype == torch.bfloat16
