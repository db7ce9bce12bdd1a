"""Block-AP: codes change where the block gains by it, from the dense weights, and never on batches held out alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmquant.algorithms.tuning import block_ap
from llmquant.errors import RecipeError
from llmquant.numerics.quantized import QuantizedTensor
from tests.algorithms.tuning.test_contract import Block, Case, make_case, tune


def with_dense(case: Case) -> Case:
    """The same with the weights before they were rounded, which `make_case` draws first."""
    torch.manual_seed(0)
    block = Block()
    dense = {"up": block.up.weight.data, "down": block.down.weight.data.T}
    case.layers = {name: replace(layer, weight=dense[name]) for name, layer in case.layers.items()}
    return case


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_gains_more_than_scales_alone(dtype: torch.dtype, dense: bool) -> None:
    case = make_case(dtype=dtype)
    scales = tune("scale_refit", case, steps=100, rate=5e-3)
    result = tune("block_ap", with_dense(case) if dense else case, steps=100)
    assert 0 < result.after < (0.8 if dense else 0.95) * scales.after
    for name, quantized in result.layers.items():
        flipped = (quantized.codes != case.layers[name].quantized.codes).float().mean()
        assert 0.01 < flipped < 0.5


def test_dense_weights_show_which_codes_are_close() -> None:
    gains = [tune("block_ap", case, steps=60).after for case in (make_case(), with_dense(make_case()))]
    assert gains[1] < 0.95 * gains[0]


def test_scales_stay_with_a_rate_of_0() -> None:
    case = with_dense(make_case())
    result = tune("block_ap", case, steps=60, scale_rate=0.0)
    assert result.after < result.before
    for name, quantized in result.layers.items():
        assert torch.equal(quantized.scales, case.layers[name].quantized.scales)


@pytest.mark.parametrize(("scheme", "largest_code"), [("int2-g16", 2), ("int3-g16", 4), ("int4-g16", 8)])
def test_a_scale_moves_its_outermost_weight_by_the_rate(scheme: str, largest_code: int) -> None:
    case = with_dense(make_case(scheme, dtype=torch.float32))
    for name, layer in case.layers.items():  # too large, so that a step helps
        right = layer.quantized
        case.layers[name] = replace(layer, quantized=QuantizedTensor(right.codes, right.scales * 1.3, right.zeros))
    result = tune("block_ap", case, steps=1, rate=0.0, scale_rate=0.008)
    assert result.after < result.before
    for name, quantized in result.layers.items():
        changes = (quantized.scales / case.layers[name].quantized.scales).log().abs()
        assert changes.median().item() == pytest.approx(0.008 / largest_code, rel=1e-2)


def test_options() -> None:
    with pytest.raises(RecipeError, match="steps is at least 1, not 0"):
        block_ap.Options(steps=0)
    with pytest.raises(RecipeError, match="scale_rate is from 0 to 1, not 2"):
        block_ap.Options(scale_rate=2.0)
