"""Edits in place of a prepared layer's tensors count: as if the layer had been edited before it was prepared."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmquant.kernels.backend import CpuKernels, GpuKernels
from llmquant.kernels.cpu import native
from llmquant.kernels.gpu import runtime
from llmquant.nn.embedding import PackedEmbedding
from llmquant.nn.int8_linear import Int8Linear
from llmquant.nn.linear import PackedLinear
from llmquant.nn.storage import PackedStorage, frozen
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

IN, OUT = 64, 40
X = torch.randn(3, IN, generator=torch.Generator().manual_seed(1)).half()
KINDS = ["cpu int4-g32-asym", "cpu int8-tensor-asym", "cpu w8a8-dynamic", "gpu int4-g32-asym"]
pytestmark = pytest.mark.skipif(native.library() is None, reason="the C++ kernels are not installed")


def made(kind: str) -> PackedStorage:
    """The same layer at each call, not prepared."""
    scheme = Scheme.parse(kind.split()[1])
    seeded = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randint(scheme.code_min, scheme.code_max + 1, shape, dtype=torch.int8, generator=seeded)

    shape = scheme.scale_shape(OUT, IN)
    scales = (torch.rand(shape, generator=seeded) * 0.1 + 0.01).half()
    quantized = QuantizedTensor(some(OUT, IN), scales, None if scheme.symmetric else some(*shape))
    bias = torch.randn(OUT, generator=seeded).half()
    return (Int8Linear if scheme.activations else PackedLinear).from_quantized(quantized, scheme, bias)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param.startswith("gpu"):
        monkeypatch.setenv(runtime.VARIABLE, "interpret")
    return request.param


def prepared(kind: str) -> PackedStorage:
    layer = made(kind)
    assert layer.prepare()
    assert isinstance(layer.kernels, GpuKernels if kind.startswith("gpu") else CpuKernels)
    assert layer.lent is None
    return layer


def mul(tensor: Tensor) -> None:
    tensor.mul_(2)


def through_data(tensor: Tensor) -> None:
    tensor.data.mul_(2)


def through_view(tensor: Tensor) -> None:
    tensor.view(-1)[0] += 1


def through_numpy(tensor: Tensor) -> None:
    tensor.detach().numpy().reshape(-1)[:1] += 1


def new_data(tensor: Tensor) -> None:
    tensor.data = tensor.data * 2


def in_inference_mode(tensor: Tensor) -> None:
    with torch.inference_mode():
        tensor.add_(1)


Edit = Callable[[Tensor], None]
COUNTED: list[Edit] = [mul, through_view, in_inference_mode]  # by versions
EDITS: list[Edit] = [*COUNTED, through_data, through_numpy, new_data]


def edited(kind: str, name: str, *edits: Edit) -> tuple[Tensor, dict[str, Tensor]]:
    """The result and the tensors of a layer that is edited before it is prepared."""
    layer = made(kind)
    for edit in edits:
        edit(getattr(layer, name))
    state = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    assert layer.prepare()
    return layer(X), state


def check(layer: PackedStorage, wanted: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert layer.weight_prepared is not None
    assert torch.equal(layer(X), wanted[0])
    found = layer.state_dict()
    assert found.keys() == wanted[1].keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted[1].items())


def names(layer: PackedStorage) -> list[str]:
    return [*(name for name in layer.names if getattr(layer, name) is not None), "bias"]


@pytest.mark.parametrize("edit", EDITS)
def test_edits_of_what_was_handed_out_by_name(kind: str, edit: Edit) -> None:
    for name in names(made(kind)):
        layer = prepared(kind)
        edit(getattr(layer, name))
        assert not torch.equal(layer(X), prepared(kind)(X))
        check(layer, edited(kind, name, edit))


@pytest.mark.parametrize("edit", EDITS)
def test_held_over_a_forward(kind: str, edit: Edit) -> None:
    layer = prepared(kind)
    held = layer.weight_scale
    assert layer.weight_scale is held
    layer(X)
    assert layer.lent is not None
    edit(held)
    check(layer, edited(kind, "weight_scale", edit))
    edit(held)
    check(layer, edited(kind, "weight_scale", edit, edit))
    del held
    layer(X)
    gc.collect()
    layer(X)
    assert layer.lent is None


def test_memory_of_it_held_over_a_forward(kind: str) -> None:
    for hold in (Tensor.numpy, lambda tensor: tensor.data, lambda tensor: tensor.view(-1)):
        layer = prepared(kind)
        held: Any = hold(layer.weight_scale)
        layer(X)
        held *= 2
        check(layer, edited(kind, "weight_scale", mul))


@pytest.mark.parametrize("edit", COUNTED)
def test_edits_of_a_state_dict(kind: str, edit: Edit) -> None:
    for name in names(made(kind)):
        layer, held = prepared(kind), prepared(kind)
        edit(layer.state_dict()[name])
        check(layer, edited(kind, name, edit))
        state = held.state_dict()
        held(X)
        edit(state[name])
        check(held, edited(kind, name, edit))


def test_one_of_several_is_edited(kind: str) -> None:
    layer = prepared(kind)
    held = [getattr(layer, name) for name in layer.names]
    mul(held[1])
    check(layer, edited(kind, "weight_scale", mul))


def test_a_state_dict_of_inference_mode(kind: str) -> None:
    layer = prepared(kind)
    with torch.inference_mode():
        mul(layer.state_dict()["weight_scale"])
        result = layer(X)
    assert torch.equal(result, edited(kind, "weight_scale", mul)[0])


def test_a_state_dict_holds_no_memory(kind: str) -> None:
    layer = prepared(kind)
    state = layer.state_dict()
    assert layer.lent is not None
    memory = weakref.ref(state[layer.names[0]].untyped_storage())
    del state
    assert memory() is None
    layer(X)
    assert layer.lent is None
    memory = weakref.ref(layer.weight_scale.untyped_storage())
    layer(X)
    assert memory() is None


def test_nothing_handed_out_costs_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = prepared(kind)
    monkeypatch.setattr(PackedStorage, "settle", None)
    layer(X)


def test_parameters_from_before_it_was_prepared(kind: str) -> None:
    layer = made(kind)
    before = dict(layer.named_parameters())
    layer.prepare()
    before["weight_scale"].mul_(2)
    check(layer, edited(kind, "weight_scale", mul))


def test_an_optimizer(kind: str) -> None:
    layer, other = prepared(kind), made(kind)
    steps = []
    for each in (layer, other):
        scale = each.weight_scale
        scale.grad = torch.ones_like(scale)
        steps.append(torch.optim.SGD([scale], lr=0.01))
        del scale
    for _ in range(2):
        for optimizer in steps:
            optimizer.step()
        twin = copy.deepcopy(other)
        twin.prepare()
        assert torch.equal(layer(X), twin(X))


def test_loading_and_assigning(kind: str) -> None:
    wanted = edited(kind, "weight_scale", mul)
    layer = prepared(kind)
    held = layer.weight_scale
    held.add_(1)
    layer.load_state_dict(wanted[1])
    check(layer, wanted)
    assert torch.equal(held, wanted[1]["weight_scale"])
    mul(held)
    check(layer, edited(kind, "weight_scale", mul, mul))
    layer.weight_scale = frozen(wanted[1]["weight_scale"].clone())
    check(layer, wanted)
    layer.load_state_dict(edited(kind, "weight_scale", mul, mul)[1], assign=True)
    check(layer, edited(kind, "weight_scale", mul, mul))


def prepare_again(layer: PackedStorage) -> PackedStorage:
    layer.prepare()
    return layer


def unprepare_and_prepare(layer: PackedStorage) -> PackedStorage:
    layer.unprepare()
    return prepare_again(layer)


def test_whatever_reads_the_weight_sees_the_edit(kind: str) -> None:
    wanted = edited(kind, "weight_scale", mul)
    readers: list[Callable[[PackedStorage], PackedStorage]] = [
        copy.deepcopy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
        lambda layer: layer.to("cpu"),
        prepare_again,
        unprepare_and_prepare,
    ]
    for read in readers:
        layer = prepared(kind)
        mul(layer.weight_scale)
        check(read(layer), wanted)
    layer = prepared(kind)
    before = layer.dequantize()
    mul(layer.weight_scale)
    assert torch.equal(layer.dequantize(), before * 2)
    mul(layer.weight_scale)
    assert torch.equal(layer.quantized().dequantize(), before * 4)


def test_what_cannot_be_prepared_any_more_is_read_as_it_is() -> None:
    layer = prepared("cpu int4-g32-asym")
    layer.weight_scale.data = layer.weight_scale.data.double()
    result = layer(X)
    assert layer.weight_prepared is None
    assert "float64" in layer.unprepared
    assert layer.weight_scale.dtype == torch.float64
    assert torch.allclose(result.float(), prepared("cpu int4-g32-asym")(X).float(), rtol=0.02, atol=0.02)


def test_not_a_number_is_equal_to_itself() -> None:
    layer = prepared("cpu int4-g32")
    held = layer.weight_scale
    held[0] = float("nan")
    layer(X)
    taken = layer.weight_prepared
    layer(X)
    assert layer.weight_prepared is taken


def test_a_vocabulary_and_its_head() -> None:
    kind = "cpu int8-tensor-asym"
    ids = torch.arange(OUT)

    def tied() -> tuple[PackedEmbedding, PackedLinear]:
        head = made(kind)
        assert isinstance(head, PackedLinear)
        table = PackedEmbedding(IN, OUT, head.scheme, dtype=torch.float16, device="meta")
        for name, parameter in head.named_parameters():
            if name != "bias":
                setattr(table, name, parameter)
        head = table.make_head(head.bias)
        assert table.prepare()
        assert head.lent is None
        return table, head

    rows = tied()[0](ids)
    for through in (0, 1):
        for get in (getattr, lambda layer, name: layer.state_dict()[name]):
            pair = tied()
            mul(get(pair[through], "weight_scale"))
            assert torch.equal(pair[0](ids), rows * 2)
            check(pair[1], edited(kind, "weight_scale", mul))
    table, head = tied()
    assert table.weight_scale is head.weight_scale
    table.weight_scale = frozen(head.weight_scale * 2)
    check(head, edited(kind, "weight_scale", mul))


def test_compiled() -> None:
    layer = nn.Sequential(prepared("cpu int4-g32-asym"))
    compiled: Any = torch.compile(layer, backend="eager")
    with torch.no_grad():
        compiled(X)
        layer[0].weight_scale.mul_(2)  # pyright: ignore[reportCallIssue]
        assert torch.equal(compiled(X), edited("cpu int4-g32-asym", "weight_scale", mul)[0])
