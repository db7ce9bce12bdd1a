"""Linear layers in training compute what the packed layers will, and pass gradients as if nothing were rounded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmquant.errors import QuantizationError
from llmquant.kernels.ops.linear_w8a8 import linear_reference
from llmquant.nn.fake_linear import FakeLinear
from llmquant.nn.fake_weight import MOMENTUM
from llmquant.nn.linear import PackedLinear
from llmquant.spec import Scheme
from tests.nn.test_fake_weight import rounded


def made(name: str, *, turned: bool = False, bias: bool = True, dtype: torch.dtype = torch.float32) -> FakeLinear:
    torch.manual_seed(0)
    weight = torch.randn(16, 64).to(dtype)
    layer = FakeLinear(64, 16, nn.Parameter(torch.randn(16).to(dtype)) if bias else None, turned)
    scheme = Scheme.parse(name)
    layer.hold(rounded(weight, name, dtype), scheme, "lsq", nn.Parameter(weight.T.contiguous() if turned else weight))
    if scheme.activations == "static":
        layer.observe_inputs()
    return layer


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_the_packed_layer(dtype: torch.dtype, turned: bool) -> None:
    layer = made("int4-g32-asym", turned=turned, dtype=dtype)
    packed = PackedLinear.from_quantized(layer.quantized(), layer.scheme, layer.bias)
    x = torch.randn(5, 64).to(dtype)
    assert torch.equal(layer(x), packed(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), packed(x))
    assert layer.weight is not None
    assert tuple(layer.weight.shape) == ((64, 16) if turned else (16, 64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["w8a8-dynamic", "w8a8-static"])
def test_inputs_are_rounded_as_the_op_does(name: str, dtype: torch.dtype) -> None:
    layer, x = made(name, dtype=dtype), torch.randn(2, 5, 64).to(dtype)
    y, found = layer(x), layer.quantized()
    static = None if layer.input_scale is None else layer.input_scale.to(dtype)
    assert torch.equal(y, linear_reference(x, found.codes, found.scales, layer.bias, static))


@pytest.mark.parametrize("name", ["w8a8-dynamic", "w8a8-static"])
def test_gradients_pass_rounded_inputs(name: str) -> None:
    layer, x = made(name), torch.randn(7, 64, requires_grad=True)
    if layer.input_scale is not None:
        layer(x.detach() / 2)  # so that some inputs are clipped
        layer.ranges_frozen = True
    weight, wanted = layer.quantized().dequantize(), torch.randn(7, 16)
    (layer(x) * wanted).sum().backward()
    assert x.grad is not None
    assert layer.weight is not None
    assert layer.weight.grad is not None
    scale = x.detach().abs().amax(-1, keepdim=True) / 127.5 if layer.input_scale is None else layer.input_scale
    codes = (x.detach() / scale).round().clamp(-128, 127)
    inside = torch.ones_like(x) if layer.input_scale is None else (x.detach().abs() <= 128 * scale).float()
    assert bool(inside.all()) == (layer.input_scale is None)
    torch.testing.assert_close(x.grad, wanted @ weight * inside)
    torch.testing.assert_close(layer.weight.grad, wanted.T @ (codes * scale))
    assert layer.bias is not None
    torch.testing.assert_close(layer.bias.grad, wanted.sum(0))


def test_the_scale_of_inputs_follows_them_and_then_stays() -> None:
    layer = made("w8a8-static")
    with pytest.raises(QuantizationError, match="scale of inputs"):
        layer.eval()(torch.ones(1, 64))
    layer.train()
    assert layer.input_scale is not None
    layer(torch.full((1, 64), 127.5))
    assert float(layer.input_scale) == 1
    layer(torch.full((1, 64), 255.0))
    assert float(layer.input_scale) == pytest.approx(1 + MOMENTUM)
    layer.ranges_frozen = True
    layer(torch.full((1, 64), 2550.0))
    assert float(layer.input_scale) == pytest.approx(1 + MOMENTUM)


def test_before_rounding_inputs_are_left_alone() -> None:
    layer, x = made("w8a8-dynamic", bias=False), torch.randn(2, 64)
    layer.fake_quant = False
    assert layer.weight is not None
    assert torch.equal(layer(x), x @ layer.weight.T)
