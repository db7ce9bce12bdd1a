"""A `PackedLinear` in kernel layout: one copy of the weight, and the checkpoint's tensors for whoever asks."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from llmquant.kernels.backend import embedding_name, reference_name
from llmquant.kernels.cpu import native
from llmquant.kernels.cpu import ops as cpu_ops
from llmquant.nn.accuracy import accuracy_of, set_accuracy
from llmquant.nn.linear import PackedLinear
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

pytestmark = pytest.mark.skipif(native.library() is None, reason="the C++ kernels are not installed")


def layer(
    name: str = "int4-g32-asym", out_features: int = 40, in_features: int = 64, bias: bool = True
) -> PackedLinear:
    scheme = Scheme.parse(name)
    codes = torch.randint(scheme.code_min, scheme.code_max + 1, (out_features, in_features), dtype=torch.int8)
    shape = scheme.scale_shape(out_features, in_features)
    zeros = None if scheme.symmetric else torch.randint(scheme.code_min, scheme.code_max + 1, shape, dtype=torch.int8)
    scales = (torch.rand(shape) * 0.1).bfloat16()
    added = torch.randn(out_features, dtype=torch.bfloat16) if bias else None
    return PackedLinear.from_quantized(QuantizedTensor(codes, scales, zeros), scheme, added)


def test_one_copy_and_the_same_result() -> None:
    packed = layer()
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    reference, state = packed(x), {name: tensor.clone() for name, tensor in packed.state_dict().items()}
    assert packed.prepare()
    assert packed.prepare()  # twice changes nothing
    assert sorted(name for name, _ in packed.named_parameters()) == ["bias", "weight_shape"]
    assert packed.weight_prepared is not None
    torch.testing.assert_close(packed(x), reference, rtol=2e-2, atol=2e-2)
    assert packed.kernel_name() == f"linear_int4: {native.isa()}, exact"
    assert packed.state_dict().keys() == state.keys()
    for name, tensor in packed.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert torch.equal(packed.weight_packed, state["weight_packed"])
    with pytest.raises(AttributeError, match="weight_other"):
        _ = packed.weight_other


def test_the_direct_call_and_the_op_agree() -> None:
    packed = layer()
    packed.prepare()
    x = torch.randn(3, 64, dtype=torch.bfloat16, requires_grad=True)
    assert packed.bias is not None
    with torch.no_grad():
        direct = packed(x)
    through_op = packed(x)
    assert through_op.grad_fn is not None
    assert torch.equal(direct, through_op)
    assert torch.equal(torch.compile(packed, fullgraph=True, backend="aot_eager")(x), direct)
    wide = packed(x.double()) if packed.bias is None else None
    assert wide is None


def test_float64_inputs_use_the_reference() -> None:
    packed = layer(bias=False)
    x = torch.randn(3, 64, dtype=torch.float64)
    reference = packed(x)
    packed.prepare()
    assert torch.equal(packed(x), reference)


def test_casts_copies_and_loading_keep_it_prepared() -> None:
    packed, other = layer(), layer()
    packed.prepare()
    x = torch.randn(3, 64)
    twin = copy.deepcopy(packed)
    assert torch.equal(twin(x.bfloat16()), packed(x.bfloat16()))
    packed.state_dict()
    pickled = pickle.loads(pickle.dumps(packed))
    assert torch.equal(pickled(x.bfloat16()), packed(x.bfloat16()))
    twin.float()
    assert twin.weight_prepared is not None
    assert twin.weight_scale.dtype == torch.float32
    torch.testing.assert_close(twin(x), packed(x.bfloat16()).float(), rtol=2e-2, atol=2e-2)
    packed.load_state_dict(other.state_dict())
    assert packed.weight_prepared is not None
    other.prepare()
    assert torch.equal(packed(x.bfloat16()), other(x.bfloat16()))
    packed.to("meta")
    assert packed.weight_packed.is_meta
    assert packed.weight_prepared is None


def test_groups_that_the_kernels_do_not_have_stay_on_the_reference() -> None:
    packed = layer("int4-g8")
    before = packed(torch.ones(1, 64, dtype=torch.bfloat16))
    assert not packed.prepare()
    assert packed.kernel_name().endswith("(groups of 8, not a multiple of 32)")
    assert torch.equal(packed(torch.ones(1, 64, dtype=torch.bfloat16)), before)


def test_accuracy() -> None:
    model = nn.Sequential(layer(bias=False), layer("int4-g8", 32, 40, bias=False))
    assert accuracy_of(nn.Linear(1, 1)) is None
    for module in model:
        module.prepare()  # pyright: ignore[reportCallIssue]
    x = torch.randn(2, 64)
    assert accuracy_of(model) == "exact"
    exact = model[0](x)
    set_accuracy(model, "fast")
    assert accuracy_of(model) == "fast"
    assert not torch.equal(model[0](x), exact)
    prepared = model[0].weight_prepared
    assert isinstance(prepared, torch.Tensor)
    assert torch.equal(model[0](x), cpu_ops.linear(x, prepared, None, 40, False))
    with pytest.raises(ValueError, match="it can be exact or fast"):
        set_accuracy(model, "quick")  # pyright: ignore[reportArgumentType]


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_nobody_who_watches_is_bypassed() -> None:
    packed = layer(bias=False)
    packed.prepare()
    x = torch.randn(2, 64)
    with torch.no_grad():
        traced: Any = torch.jit.trace(packed, (x,))
        assert torch.equal(traced(x), packed(x))
    assert packed.weight_zero_point is not None
    symmetric = layer("int4-g32")
    symmetric.prepare()
    assert symmetric.weight_zero_point is None


def test_a_copy_does_not_carry_the_memory_of_its_neighbours() -> None:
    packed, _ = layer(), layer().prepare()
    packed.prepare()
    assert len(pickle.dumps(packed)) < 20_000


def test_back_from_a_dtype_that_the_kernels_do_not_have() -> None:
    packed = layer(bias=False)
    packed.prepare()
    assert "float64" in packed.double().kernel_name()
    assert packed.float().kernel_name() == f"linear_int4: {native.isa()}, exact"


def test_autocast() -> None:
    packed = layer().float()
    packed.prepare()
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.bfloat16, torch.float32):  # as of nn.Linear
            assert packed(torch.randn(2, 64, dtype=dtype)).dtype == torch.bfloat16


def test_what_is_not_prepared_is_named_with_what_unpacks_it() -> None:
    assert reference_name(4, "cpu").startswith("linear_int4: reference, ")
    assert reference_name(8, "cuda") == "linear_int8: reference, torch unpack"
    assert embedding_name(8, "cpu").startswith("embedding_int8: ")
