"""`PackedLinear`: the tensors of a compressed-tensors file, the numbers of the dense layer."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional

from llmquant.formats.compressed_tensors.codec import decode, encode
from llmquant.nn.linear import PackedLinear
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

NAMES = [f"int{bits}{suffix}" for bits in (2, 3, 4, 8) for suffix in ("", "-g8", "-g8-asym", "-tensor-asym")]


def random_weight(scheme: Scheme, out_features: int, in_features: int, dtype: torch.dtype) -> QuantizedTensor:
    low, high = scheme.code_min, scheme.code_max + 1
    shape = scheme.scale_shape(out_features, in_features)
    codes = torch.randint(low, high, (out_features, in_features), dtype=torch.int8)
    zeros = None if scheme.symmetric else torch.randint(low, high, shape, dtype=torch.int8)
    return QuantizedTensor(codes, torch.randn(shape).to(dtype) * 0.1, zeros)


def same(one: QuantizedTensor, other: QuantizedTensor) -> bool:
    zeros = (one.zeros is None) == (other.zeros is None) and (
        one.zeros is None or other.zeros is None or torch.equal(one.zeros, other.zeros)
    )
    return torch.equal(one.codes, other.codes) and torch.equal(one.scales, other.scales) and zeros


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_is_the_dense_layer(name: str, dtype: torch.dtype) -> None:
    scheme = Scheme.parse(name)
    quantized = random_weight(scheme, 7, 24, dtype)
    bias = torch.randn(7, dtype=dtype)
    layer = PackedLinear.from_quantized(quantized, scheme, bias)
    x = torch.randn(2, 3, 24, dtype=dtype)
    assert same(layer.quantized(), quantized)
    assert torch.equal(layer.dequantize(), quantized.dequantize())
    assert torch.equal(layer(x), functional.linear(x, quantized.dequantize(), bias))


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_is_a_piece_of_a_checkpoint(name: str) -> None:
    scheme = Scheme.parse(name)
    quantized = random_weight(scheme, 7, 24, torch.bfloat16)
    stored = encode("layer", quantized, scheme)
    model = nn.ModuleDict({"layer": PackedLinear.from_quantized(quantized, scheme)})
    state = model.state_dict()
    assert state.keys() == stored.keys()
    for key, tensor in stored.items():
        assert (state[key].dtype, state[key].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(state[key], tensor)
    # A layer made on the meta device from the sizes alone takes exactly these tensors.
    empty = nn.ModuleDict({"layer": PackedLinear(24, 7, scheme, device="meta")})
    for key, parameter in empty.named_parameters():
        assert parameter.is_meta
        assert (parameter.dtype, parameter.shape) == (stored[key].dtype, stored[key].shape)
    empty.load_state_dict(stored, assign=True)
    assert same(decode("layer", empty.state_dict(), scheme), quantized)


def test_parameters_are_frozen_and_count_no_memory_on_meta() -> None:
    layer = PackedLinear(64, 32, Scheme.parse("int4-g32-asym"), bias=True)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert layer.weight_shape.tolist() == [32, 64]
    assert torch.equal(layer(torch.randn(1, 64, dtype=torch.bfloat16)), torch.zeros(1, 32, dtype=torch.bfloat16))


def test_gradient_flows_to_the_input() -> None:
    scheme = Scheme.parse("int4-g8")
    layer = PackedLinear.from_quantized(random_weight(scheme, 7, 24, torch.float32), scheme)
    x = torch.randn(3, 24, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.dequantize().sum(0).expand(3, 24), atol=1e-6)  # sums in another order


def test_cast_rounds_the_scales_only() -> None:
    scheme = Scheme.parse("int4-g8-asym")
    quantized = random_weight(scheme, 7, 24, torch.float32)
    layer = PackedLinear.from_quantized(quantized, scheme, torch.randn(7)).to(torch.bfloat16)
    assert layer.bias is not None
    assert layer.bias.dtype == torch.bfloat16
    wanted = QuantizedTensor(quantized.codes, quantized.scales.to(torch.bfloat16), quantized.zeros)
    assert same(layer.quantized(), wanted)


def test_copies_and_pickles() -> None:
    scheme = Scheme.parse("int3-g8")
    layer = PackedLinear.from_quantized(random_weight(scheme, 7, 24, torch.float32), scheme)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    x = torch.randn(2, 24)
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x), layer(x))


def test_compiles_without_a_break() -> None:
    model = nn.Sequential(
        PackedLinear.from_quantized(
            random_weight(Scheme.parse("int4-g8"), 16, 24, torch.float32), Scheme.parse("int4-g8")
        ),
        nn.SiLU(),
        PackedLinear.from_quantized(random_weight(Scheme.parse("int8"), 5, 16, torch.float32), Scheme.parse("int8")),
    )
    x = torch.randn(3, 24)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def test_describes_itself() -> None:
    layer = PackedLinear(64, 32, Scheme.parse("int4-g32"), bias=True)
    assert repr(layer) == "PackedLinear(in_features=64, out_features=32, scheme=int4-g32, bias=True)"
    assert layer.kernel_name().startswith("linear_int4: ")


@pytest.mark.parametrize("name", ["keep", "w8a8-dynamic"])
def test_other_schemes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"not {name}"):
        PackedLinear(64, 32, Scheme.parse(name))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 32 do not divide in_features = 40"):
        PackedLinear(40, 32, Scheme.parse("int4-g32"))
    quantized = random_weight(Scheme.parse("int4-g8"), 7, 24, torch.float32)
    for name in ("int4-g12", "int4", "int4-g8-asym"):
        with pytest.raises(ValueError, match="wants scales"):
            PackedLinear.from_quantized(quantized, Scheme.parse(name))
