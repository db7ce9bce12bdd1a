"""The refit of scales: it helps, on batches that it was not fitted on, and is dropped where it does not."""

from __future__ import annotations

import pytest
import torch

from llmquant.algorithms.tuning import scale_refit
from llmquant.algorithms.tuning.base import TunedLayer
from llmquant.errors import RecipeError
from llmquant.numerics.quantized import QuantizedTensor
from tests.algorithms.tuning.test_contract import make_case, tune


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_error_on_batches_held_out_falls(dtype: torch.dtype) -> None:
    case = make_case(dtype=dtype)
    result = tune("scale_refit", case, steps=100, rate=5e-3)
    assert 0 < result.after < 0.9 * result.before
    for name, quantized in result.layers.items():
        start = case.layers[name].quantized
        assert quantized.codes is start.codes  # the integers are frozen
        assert not torch.equal(quantized.scales, start.scales)
        ratio = quantized.scales.float() / start.scales.float()
        assert ((ratio > 0.77) & (ratio < 1.3)).all()


def test_scales_that_were_off_are_found_again() -> None:
    case = make_case("int8", dtype=torch.float32)
    right = {name: layer.quantized for name, layer in case.layers.items()}
    for name, layer in right.items():
        off = QuantizedTensor(layer.codes, layer.scales * 1.1, layer.zeros)
        case.layers[name] = TunedLayer(off, case.layers[name].scheme, case.layers[name].turned)
    result = tune("scale_refit", case, steps=300, rate=5e-3)
    assert result.after < 0.01 * result.before
    assert all((result.layers[name].scales / right[name].scales - 1).abs().median() < 0.05 for name in right)


def test_a_fit_to_noise_is_dropped() -> None:
    case = make_case()
    # The batches that it is fitted on want something else than the last, which is held out.
    case.targets[:-1] = [torch.zeros_like(target) for target in case.targets[:-1]]
    result = tune("scale_refit", case)
    assert result.after == result.before
    assert all(result.layers[name] is layer.quantized for name, layer in case.layers.items())


def test_what_is_held_out_is_not_fitted() -> None:
    """Batches held out decide whether the fit is taken, and not what it is."""
    case, other = make_case(), make_case()
    other.targets[-1] = other.targets[-1] * 0.99
    one, two = tune("scale_refit", case), tune("scale_refit", other)
    assert one.before != two.before
    for name, quantized in one.layers.items():
        assert not torch.equal(quantized.scales, case.layers[name].quantized.scales)
        assert torch.equal(quantized.scales, two.layers[name].scales)


@pytest.mark.parametrize(
    ("steps", "rate", "change", "within"),
    [
        (64, 0.05, 0.25, 1e-4),  # what a scale may change by at most
        (4, 0.01, 0.01 + 0.0075 + 0.005 + 0.0025, 1e-3),  # the rate falls in a straight line
    ],
)
def test_how_far_a_scale_goes_that_is_far_off(steps: int, rate: float, change: float, within: float) -> None:
    case = make_case("int8", dtype=torch.float32)
    right = {name: layer.quantized for name, layer in case.layers.items()}
    for name, layer in right.items():
        off = QuantizedTensor(layer.codes, layer.scales * 2.0, layer.zeros)
        case.layers[name] = TunedLayer(off, case.layers[name].scheme, case.layers[name].turned)
    result = tune("scale_refit", case, steps=steps, rate=rate)
    assert result.after < result.before
    for name, quantized in result.layers.items():
        changes = (quantized.scales / case.layers[name].quantized.scales).log()
        assert changes.min().item() == pytest.approx(-change, abs=within)


def test_what_is_not_finite_is_dropped() -> None:
    case = make_case()
    case.targets[0] = torch.full_like(case.targets[0], float("nan"))
    result = tune("scale_refit", case)
    assert all(result.layers[name] is layer.quantized for name, layer in case.layers.items())


def test_options() -> None:
    with pytest.raises(RecipeError, match="steps is at least 1, not 0"):
        scale_refit.Options(steps=0)
    with pytest.raises(RecipeError, match=r"rate is above 0 and at most 0.1, not 0.5"):
        scale_refit.Options(rate=0.5)
