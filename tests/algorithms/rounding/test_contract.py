"""What every algorithm promises. A new file in llmquant/algorithms/rounding is found by its name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from llmquant.algorithms import rounding
from llmquant.algorithms.rounding.base import Algorithm, LayerResult
from llmquant.errors import QuantizationError
from llmquant.spec import Scheme
from llmquant.statistics import names as statistics_names
from llmquant.statistics.base import LayerStatistics

SCHEMES = ["int2-g32", "int3-g16-asym", "int4-g32", "int4-g32-asym", "int4", "int8", "int8-tensor", "w8a8-dynamic"]


@pytest.fixture(params=rounding.names())
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    return rounding.find(request.param)


def run(
    algorithm: Algorithm,
    weight: Tensor,
    statistics: LayerStatistics,
    scheme: str = "int4-g32",
    scale_dtype: torch.dtype = torch.bfloat16,
) -> LayerResult:
    return algorithm.quantize(weight, statistics, Scheme.parse(scheme), algorithm.Options(), scale_dtype=scale_dtype)


def test_module(algorithm: Algorithm) -> None:
    assert algorithm.NEEDS.issubset(statistics_names())
    options: Any = algorithm.Options()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.grid = "mse"
    assert all(field.kw_only for field in dataclasses.fields(options))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_result(
    algorithm: Algorithm, weight: Tensor, statistics: LayerStatistics, name: str, dtype: torch.dtype
) -> None:
    scheme, weight = Scheme.parse(name), weight.to(dtype).requires_grad_()
    kept = weight.clone(), {key: value.clone() for key, value in statistics.values.items()}
    result = run(algorithm, weight, statistics, name, dtype)
    quantized = result.quantized
    assert quantized.codes.shape == weight.shape
    assert quantized.codes.dtype == torch.int8
    assert quantized.codes.is_contiguous()
    assert quantized.codes.min() >= scheme.code_min
    assert quantized.codes.max() <= scheme.code_max
    assert quantized.scales.shape == scheme.scale_shape(*weight.shape)
    assert quantized.scales.dtype == dtype
    assert (quantized.zeros is None) == scheme.symmetric
    assert 0 < result.loss < 1
    assert result.counters == {}
    assert not quantized.scales.requires_grad
    assert torch.equal(weight, kept[0])
    assert all(torch.equal(value, kept[1][key]) for key, value in statistics.values.items())

    again = run(algorithm, weight, statistics, name, dtype)
    assert again.loss == result.loss
    assert torch.equal(again.quantized.codes, quantized.codes)
    assert torch.equal(again.quantized.scales, quantized.scales)


@pytest.mark.parametrize("name", SCHEMES)
def test_never_worse_than_rtn(algorithm: Algorithm, weight: Tensor, statistics: LayerStatistics, name: str) -> None:
    plain = run(rounding.find("rtn"), weight, statistics, name)
    assert run(algorithm, weight, statistics, name).loss <= plain.loss


def test_loss_is_as_documented(algorithm: Algorithm, weight: Tensor, statistics: LayerStatistics) -> None:
    result = run(algorithm, weight, statistics)
    hessian, full = statistics.values["hessian"].double(), weight.double()
    error = result.quantized.dequantize().double() - full
    assert result.loss == pytest.approx(
        ((error @ hessian * error).sum() / (full @ hessian * full).sum()).item(), rel=1e-4
    )


def test_groups_that_do_not_divide_are_refused(
    algorithm: Algorithm, weight: Tensor, statistics: LayerStatistics
) -> None:
    with pytest.raises(QuantizationError, match="groups of 48 do not divide in_features = 160"):
        run(algorithm, weight, statistics, "int4-g48")


def test_weights_that_are_not_finite_are_refused(
    algorithm: Algorithm, weight: Tensor, statistics: LayerStatistics
) -> None:
    weight[3, 5] = float("nan")
    with pytest.raises(QuantizationError, match=r"the weight holds 1 values .* the first at \[3, 5\]"):
        run(algorithm, weight, statistics)


def test_empty_statistics(algorithm: Algorithm, weight: Tensor) -> None:
    if algorithm.NEEDS:
        with pytest.raises(QuantizationError, match=r"needs .* from calibration, but there is none"):
            run(algorithm, weight, LayerStatistics())
    else:
        assert 0 < run(algorithm, weight, LayerStatistics()).loss < 1


def test_zero_weight(algorithm: Algorithm, weight: Tensor, statistics: LayerStatistics) -> None:
    weight[:, :32] = 0
    result = run(algorithm, weight, statistics, "int4-g32-asym")
    assert result.counters == {"zero_groups": 24}
    assert (result.quantized.scales[:, 0] == 1).all()
    everything = run(algorithm, torch.zeros_like(weight), statistics)
    assert everything.loss == 0
    assert everything.counters == {"zero_groups": 24 * 5}
    assert (everything.quantized.codes == 0).all()
