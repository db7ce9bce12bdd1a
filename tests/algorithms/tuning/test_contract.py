"""What every tuning method promises. A new file in llmquant/algorithms/tuning is found by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmquant.algorithms import tuning
from llmquant.algorithms.rounding import rtn
from llmquant.algorithms.tuning.base import BlockCall, TunedLayer, TuningResult
from llmquant.algorithms.tuning.shared.descend import split
from llmquant.errors import RecipeError
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme
from llmquant.statistics.base import LayerStatistics


class Turned(nn.Module):
    """A linear layer whose weight lies as (in_features, out_features)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(in_features, out_features) / in_features**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Block(nn.Module):
    """A residual block with a linear layer that is kept, one that is rounded, and a turned one."""

    def __init__(self) -> None:
        super().__init__()
        self.kept, self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 64), Turned(64, 32)
        self.requires_grad_(False)

    def forward(self, x: Tensor, *, scale: float) -> tuple[Tensor]:
        return (x + scale * self.down(torch.relu(self.up(self.kept(x)))),)


@dataclasses.dataclass
class Case:
    block: Block
    calls: list[BlockCall]
    targets: list[Tensor]
    layers: dict[str, TunedLayer]


def call_with(x: Tensor, block: Callable[..., Any]) -> Tensor:
    return block(x.clone(), scale=2.0)[0]


def make_case(scheme: str = "int2-g16", batches: int = 8, dtype: torch.dtype = torch.bfloat16) -> Case:
    torch.manual_seed(0)
    block = Block()
    calls = [partial(call_with, torch.randn(2, 24, 32)) for _ in range(batches)]
    targets = [call(block) for call in calls]
    layers = {}
    for name, turned in (("up", False), ("down", True)):
        module: Any = block.get_submodule(name)
        weight = module.weight.data.T if turned else module.weight.data
        parsed = Scheme.parse(scheme)
        result = rtn.quantize(weight, LayerStatistics(), parsed, rtn.Options(), scale_dtype=dtype)
        layers[name] = TunedLayer(result.quantized, parsed, turned)
        module.weight.data.copy_(result.quantized.dequantize().T if turned else result.quantized.dequantize())
    return Case(block, calls, targets, layers)


def tune(name: str, case: Case, **options: Any) -> TuningResult:
    method = tuning.find(name)
    return method.tune(case.block, case.calls, case.targets, case.layers, method.Options(**options))


def error(case: Case, layers: dict[str, QuantizedTensor]) -> float:
    """Of the batches held out, with the weights that readers of `layers` see."""
    block = Block()
    block.load_state_dict(case.block.state_dict())
    for name, quantized in layers.items():
        dense = quantized.dequantize()
        block.get_parameter(f"{name}.weight").data.copy_(dense.T if case.layers[name].turned else dense)
    _, pairs = split(list(zip(case.calls, case.targets, strict=True)))
    tokens = [((call(block) - target).square().sum(-1) / target.square().sum(-1)).flatten() for call, target in pairs]
    return torch.cat(tokens).mean().item()


@pytest.fixture(params=tuning.names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_module(name: str) -> None:
    options: Any = tuning.find(name).Options()
    assert options.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(options))


@pytest.mark.parametrize("scheme", ["int2-g16", "int3-g32-asym", "int4", "int3-tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_it_says_is_what_readers_get(name: str, scheme: str, dtype: torch.dtype) -> None:
    case = make_case(scheme, dtype=dtype)
    state = {key: value.clone() for key, value in case.block.state_dict().items()}
    with torch.no_grad():  # as the engine runs it
        result = tune(name, case)
    assert result.layers.keys() == case.layers.keys()
    for layer, quantized in result.layers.items():
        start, parsed = case.layers[layer].quantized, case.layers[layer].scheme
        assert quantized.codes.shape == start.codes.shape
        assert quantized.scales.shape == start.scales.shape
        assert quantized.scales.dtype == dtype
        assert not quantized.scales.requires_grad
        assert parsed.code_min <= quantized.codes.min() <= quantized.codes.max() <= parsed.code_max
        assert (quantized.zeros is None) == (start.zeros is None)
    assert result.after <= result.before
    before = {layer: tuned.quantized for layer, tuned in case.layers.items()}
    assert result.before == pytest.approx(error(case, before), rel=1e-4)
    assert result.after == pytest.approx(error(case, dict(result.layers)), rel=1e-4)
    assert all(torch.equal(value, state[key]) for key, value in case.block.state_dict().items())
    assert all(parameter.grad is None for parameter in case.block.parameters())


def test_the_same_comes_out_again(name: str) -> None:
    one, other = (tune(name, make_case()) for _ in range(2))
    assert (one.before, one.after) == (other.before, other.after)
    assert all(torch.equal(one.layers[key].scales, other.layers[key].scales) for key in one.layers)


def test_a_block_without_rounded_layers_or_batches_to_hold_out_stays(name: str) -> None:
    case = make_case(batches=1)
    assert tune(name, case).layers["up"] is case.layers["up"].quantized
    case.layers = {}
    assert not tune(name, case).layers


def test_what_is_no_tuning_method() -> None:
    with pytest.raises(RecipeError, match="unknown tuning method 'scale_refits'; did you mean 'scale_refit'"):
        tuning.find("scale_refits")
    assert "base" not in tuning.names()
