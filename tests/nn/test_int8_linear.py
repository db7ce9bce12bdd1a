"""`Int8Linear`: the tensors of a compressed-tensors file, prepared and not."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from llmquant.formats.compressed_tensors.codec import encode
from llmquant.kernels.cpu import native
from llmquant.kernels.ops.linear_w8a8 import linear_reference
from llmquant.nn.accuracy import accuracy_of, kernels_used
from llmquant.nn.int8_linear import Int8Linear
from llmquant.nn.linear import PackedLinear
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

DYNAMIC, STATIC = Scheme.parse("w8a8-dynamic"), Scheme.parse("w8a8-static")
needs_cpp = pytest.mark.skipif(native.library() is None, reason="the C++ kernels are not installed")


def weight(out_features: int = 40, in_features: int = 70) -> QuantizedTensor:
    codes = torch.randint(-128, 128, (out_features, in_features), dtype=torch.int8)
    return QuantizedTensor(codes, (torch.rand(out_features, 1) * 0.02 + 1e-3).bfloat16())


def static() -> Int8Linear:
    layer, quantized = Int8Linear(70, 40, STATIC, bias=True), weight()
    values = {"weight": quantized.codes, "weight_scale": quantized.scales, "bias": torch.randn(40).bfloat16()}
    layer.load_state_dict(values | {"input_scale": torch.tensor([0.03])})
    return layer


def test_state_dict_is_a_piece_of_a_checkpoint() -> None:
    quantized = weight()
    stored = encode("layer", quantized, DYNAMIC)
    layer = Int8Linear.from_quantized(quantized, DYNAMIC)
    state = nn.ModuleDict({"layer": layer}).state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[key], tensor) and state[key].dtype == tensor.dtype for key, tensor in stored.items())
    empty = nn.ModuleDict({"layer": Int8Linear(70, 40, DYNAMIC, device="meta")})
    assert all(parameter.is_meta and not parameter.requires_grad for parameter in empty.parameters())
    empty.load_state_dict(stored, assign=True)
    assert torch.equal(layer.dequantize(), quantized.dequantize())
    assert torch.equal(layer.quantized().codes, quantized.codes)
    assert layer.kernel_name() == "linear_w8a8: reference"


@needs_cpp
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_prepared_has_one_copy_and_the_same_results(kind: str) -> None:
    layer = static() if kind == "static" else Int8Linear.from_quantized(weight(), DYNAMIC, torch.randn(40).bfloat16())
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert ("input_scale" in state) == (kind == "static")
    x = torch.randn(2, 3, 70, dtype=torch.bfloat16)
    reference = layer(x)
    given = layer.input_scale
    assert torch.equal(reference, linear_reference(x, layer.weight, layer.weight_scale, layer.bias, given))
    assert layer.prepare()
    assert layer.prepare()
    assert sorted(name for name, _ in layer.named_parameters()) == ["bias"] + ["input_scale"] * (kind == "static")
    with torch.no_grad():
        direct = layer(x)
    torch.testing.assert_close(direct, reference, rtol=2**-7, atol=1e-5)
    x.requires_grad_()
    assert torch.equal(layer(x), direct)
    assert layer(x).grad_fn is not None
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), direct)
    assert layer.kernel_name() == f"linear_w8a8: {native.isa()}"
    assert kernels_used(layer) == {layer.kernel_name(): 1}
    assert accuracy_of(layer) is None
    for twin in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)).to("cpu")):
        assert twin.weight_prepared is not None
        assert twin.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in twin.state_dict().items())
        assert torch.equal(twin.weight, state["weight"])
    layer.float()
    assert layer.weight_prepared is not None
    assert layer.weight_scale.dtype == torch.float32
    torch.testing.assert_close(layer(x.float()), direct.float(), rtol=2e-2, atol=2e-2 * float(direct.abs().max()))
    assert layer.to("meta").weight_prepared is None
    assert layer.weight.is_meta


def test_other_schemes_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="8-bit activations"):
        Int8Linear(64, 8, Scheme.parse("int8"))
    with pytest.raises(ValueError, match="PackedLinear holds"):
        PackedLinear(64, 8, DYNAMIC)
    quantized = weight()
    with pytest.raises(ValueError, match=r"scales \[40, 1\]"):
        Int8Linear.from_quantized(QuantizedTensor(quantized.codes, quantized.scales.T), DYNAMIC)
    with pytest.raises(ValueError, match="got w8a8-static"):
        Int8Linear.from_quantized(quantized, STATIC)
