"""GPTQ against optimal brain surgeon written down naively, and on Hessians that real calibration produces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmquant.algorithms.rounding import gptq, rtn
from llmquant.errors import QuantizationError, RecipeError
from llmquant.numerics.grid import Grid, choose_grid, round_to_grid
from llmquant.spec import Scheme
from llmquant.statistics.base import LayerStatistics

ORDERS = ("static", "group", "none")


def hessian_of(statistics: LayerStatistics) -> Tensor:
    return statistics.values["hessian"]


def run(weight: Tensor, statistics: LayerStatistics, name: str = "int4-g32", **options: Any) -> Any:
    scale_dtype = options.pop("scale_dtype", torch.float32)
    return gptq.quantize(weight, statistics, Scheme.parse(name), gptq.Options(**options), scale_dtype=scale_dtype)


def naive_order(diagonal: list[float], group_size: int, order: str) -> list[int]:
    inputs = list(range(len(diagonal)))
    if order == "none":
        return inputs
    if order == "static":
        return sorted(inputs, key=lambda j: -diagonal[j])
    groups = [inputs[begin : begin + group_size] for begin in range(0, len(inputs), group_size)]
    groups.sort(key=lambda group: -max(diagonal[j] for j in group))
    return [j for group in groups for j in sorted(group, key=lambda j: -diagonal[j])]


def naive_codes(
    weight: Tensor, hessian: Tensor, scheme: Scheme, order: str, damp: float, scale_dtype: torch.dtype
) -> Tensor:
    """Optimal brain surgeon: after each input, invert the Hessian of those left and spread the error over them."""
    grid = choose_grid(weight, scheme, scale_dtype=scale_dtype, objective="mse", importance=hessian.diagonal())
    group_size = weight.shape[1] // grid.scales.shape[1]
    scales = grid.scales.double().expand(scheme.scale_shape(*weight.shape))
    zeros = torch.zeros_like(scales) if grid.zeros is None else grid.zeros.double()
    values, full = weight.double(), hessian.double()
    full = full + damp * full.diagonal().mean() * torch.eye(len(full))
    codes = torch.zeros_like(values)
    left = naive_order(hessian.diagonal().tolist(), group_size, order)
    while left:
        inverse = torch.linalg.inv(full[left][:, left])
        j = left[0]
        scale, zero = scales[:, j // group_size], zeros[:, j // group_size]
        codes[:, j] = ((values[:, j] / scale).round() + zero).clamp(scheme.code_min, scheme.code_max)
        read = (scale * (codes[:, j] - zero)).to(scale_dtype).double()
        values[:, left] -= torch.outer((values[:, j] - read) / inverse[0, 0], inverse[0])
        left = left[1:]
    return codes


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym", "int3", "int2-asym"])
def test_equals_naive_loop(weight: Tensor, statistics: LayerStatistics, name: str, order: str) -> None:
    expected = naive_codes(weight, hessian_of(statistics), Scheme.parse(name), order, 0.02, torch.float32)
    result = run(weight, statistics, name, order=order, damp=0.02)
    assert torch.equal(result.quantized.codes.double(), expected)


@pytest.mark.parametrize("name", ["int8", "int4-g32-asym", "int4-tensor"])
def test_equals_naive_loop_with_bfloat16_scales(weight: Tensor, statistics: LayerStatistics, name: str) -> None:
    scheme = Scheme.parse(name)
    if scheme.granularity == "tensor":
        weight = weight / weight.abs().amax(1, keepdim=True)
    expected = naive_codes(weight, hessian_of(statistics), scheme, "static", 0.01, torch.bfloat16)
    result = run(weight, statistics, name, scale_dtype=torch.bfloat16)
    assert torch.equal(result.quantized.codes.double(), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("suffix", ["-g32", "-g32-asym", ""])
@pytest.mark.parametrize("order", ORDERS)
def test_better_than_rtn_on_the_same_grid(
    weight: Tensor, statistics: LayerStatistics, bits: int, suffix: str, order: str
) -> None:
    name = f"int{bits}{suffix}"
    plain = rtn.quantize(weight, statistics, Scheme.parse(name), rtn.Options(), scale_dtype=torch.float32)
    assert run(weight, statistics, name, order=order, grid="absmax").loss < 0.8 * plain.loss


def test_options_help_in_the_order_of_their_cost(weight: Tensor, statistics: LayerStatistics) -> None:
    losses = {grid: run(weight, statistics, "int3-g32", grid=grid).loss for grid in ("absmax", "mse", "diag")}
    assert losses["diag"] < losses["mse"] < losses["absmax"]  # here; on real layers diag and mse take turns
    by_order = {order: run(weight, statistics, "int3-g32", order=order).loss for order in ORDERS}
    assert by_order["static"] < by_order["none"]
    assert by_order["group"] < by_order["none"]


def test_inputs_without_correlation_are_rounded_to_nearest(weight: Tensor) -> None:
    scheme = Scheme.parse("int4-g32")
    result = run(weight, LayerStatistics({"hessian": torch.diag(torch.rand(160) + 0.1)}, 1), grid="mse")
    grid = choose_grid(weight, scheme, scale_dtype=torch.float32, objective="mse")
    assert torch.equal(result.quantized.codes, round_to_grid(weight, grid, scheme))


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym", "int4"])
def test_dead_columns_are_rounded_and_disturb_nothing(weight: Tensor, statistics: LayerStatistics, name: str) -> None:
    dead = kill(statistics, [0, 50, 51, 159])
    weight[:, 50] = 1e3
    result = run(weight, statistics, name)
    assert result.counters == {"dead_columns": 4}
    quantized, scheme = result.quantized, Scheme.parse(name)
    nearest = round_to_grid(weight, Grid(quantized.scales, quantized.zeros), scheme)
    assert torch.equal(quantized.codes[:, dead], nearest[:, dead])
    small = dead.clone()
    small[50] = False
    assert (quantized.dequantize() - weight)[:, small].norm() < 0.5 * weight[:, small].norm()
    clean = weight.clone()
    clean[:, dead] = 0
    without = run(clean, statistics, name).quantized
    assert torch.equal(without.codes[:, ~dead], quantized.codes[:, ~dead])
    assert torch.equal(without.scales, quantized.scales)
    assert 0 < result.loss < 0.01


@pytest.mark.parametrize("tokens", [4000, 40, 3])
@pytest.mark.parametrize("dead", [[], [0, 50, 51]])
@pytest.mark.parametrize("damp", [0.0, 0.01, 1.0])
def test_the_loss_that_comes_with_rounding_is_that_of_the_errors(
    weight: Tensor, tokens: int, dead: list[int], damp: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = torch.randn(tokens, 160) @ torch.randn(160, 160)
    inputs[:, dead] = 0
    hessian = inputs.T @ inputs / tokens
    known = []
    monkeypatch.setattr(gptq, "relative_loss", lambda *a: known.append(a[3]) or loss_of_errors(*a[:3]))
    wanted = run(weight, LayerStatistics({"hessian": hessian}, tokens), damp=damp).loss
    if known[0] is None:  # what a difference of two large numbers cannot say is measured
        assert tokens < 160
    else:
        power = (weight.double() @ hessian.double() * weight.double()).sum().item()
        assert known[0] / power == pytest.approx(wanted, rel=1e-4)


def loss_of_errors(weight: Tensor, quantized: Any, hessian: Tensor) -> float:
    """As `base.LayerResult` has it, in float64."""
    error, exact = quantized.dequantize().double() - weight.double(), hessian.double()
    return ((error @ exact * error).sum() / (weight.double() @ exact * weight.double()).sum()).item()


def kill(statistics: LayerStatistics, inputs: list[int]) -> Tensor:
    """Make inputs that calibration never saw differ from 0; their mask."""
    hessian = hessian_of(statistics)
    dead = torch.zeros(len(hessian), dtype=torch.bool)
    dead[inputs] = True
    hessian[dead] = 0
    hessian[:, dead] = 0
    return dead


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym"])
@pytest.mark.parametrize("grid", ["absmax", "mse", "diag"])
def test_a_group_of_dead_inputs_alone_has_a_grid_of_its_own(
    weight: Tensor, statistics: LayerStatistics, name: str, grid: str
) -> None:
    dead = kill(statistics, list(range(32, 64)))
    result = run(weight, statistics, name, grid=grid)
    assert result.counters == {"dead_columns": 32}
    assert (result.quantized.dequantize() - weight)[:, dead].norm() < 0.2 * weight[:, dead].norm()


def test_damping_is_a_share_of_what_the_live_inputs_carry(weight: Tensor, statistics: LayerStatistics) -> None:
    dead = kill(statistics, list(range(64)))
    codes = run(weight, statistics, damp=0.5).quantized.codes
    alone = LayerStatistics({"hessian": hessian_of(statistics)[64:, 64:]}, statistics.tokens)
    assert torch.equal(codes[:, ~dead], run(weight[:, 64:], alone, damp=0.5).quantized.codes)
    assert not torch.equal(codes[:, ~dead], run(weight[:, 64:], alone, damp=0.3).quantized.codes)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_pivots_below_the_noise_of_the_hessian_raise_the_damping(weight: Tensor, scale: float) -> None:
    # Two inputs that differ by less than a float32 sum of 160 terms can tell (160 * 2^-23 = 1.9e-5 of the mean):
    # float64 factorises that, and the error of one would go to the other with a gain made of rounding noise.
    for apart, raised in ((2.0**-17, {"damping_raised": 1}), (2.0**-14, {})):
        hessian = torch.eye(160)
        hessian[3, 4] = hessian[4, 3] = 1
        hessian[4, 4] += apart
        assert run(weight, LayerStatistics({"hessian": hessian * scale}, 9), damp=0.0, order="none").counters == raised
    # The diagonal of a dead input is no measurement, so no noise either.
    hessian[7, 7] = 0
    assert run(weight, LayerStatistics({"hessian": hessian * scale}, 9), damp=0.0, order="none").counters == {
        "dead_columns": 1
    }


@pytest.mark.parametrize("damp", [0.0, 0.01])
def test_fewer_tokens_than_inputs(weight: Tensor, damp: float) -> None:
    inputs = torch.randn(20, 160)
    result = run(weight, LayerStatistics({"hessian": inputs.t() @ inputs / 20}, 20), damp=damp)
    # 20 tokens leave most directions of the 160 inputs free, so the damping has to fill them.
    assert result.counters == ({"damping_raised": 1} if damp == 0 else {})
    assert result.loss < 1e-3


def test_indefinite_hessian_is_counted_then_refused(weight: Tensor, statistics: LayerStatistics) -> None:
    hessian = hessian_of(statistics)
    mean = hessian.diagonal().mean()
    hessian[3, 5] = hessian[5, 3] = hessian.diagonal()[[3, 5]].prod().sqrt() + mean * 0.1
    assert run(weight, statistics).counters["damping_raised"] in range(1, 10)
    hessian[3, 5] = hessian[5, 3] = mean * 1e4
    with pytest.raises(QuantizationError, match="no Cholesky factor even with 100 times its mean"):
        run(weight, statistics)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_either_precision_of_the_factor_gives_the_same_quality(
    weight: Tensor, statistics: LayerStatistics, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = run(weight, statistics)
    monkeypatch.setattr("llmquant.algorithms.rounding.shared.ldl.FLOAT64_UP_TO", 0 if dtype == torch.float32 else 4096)
    assert run(weight, statistics).loss == pytest.approx(exact.loss, rel=1e-3)


def test_unusable_statistics_are_refused(weight: Tensor, statistics: LayerStatistics) -> None:
    hessian = hessian_of(statistics)
    with pytest.raises(QuantizationError, match="but no token was seen"):
        run(weight, LayerStatistics({"hessian": hessian}, 0))
    with pytest.raises(QuantizationError, match=r"shape \[8, 8\], but in_features = 160"):
        run(weight, LayerStatistics({"hessian": hessian[:8, :8]}, 9))
    with pytest.raises(QuantizationError, match=r"diagonal of the Hessian lies in \[0, 0\]"):
        run(weight, LayerStatistics({"hessian": torch.zeros(160, 160)}, 9))
    with pytest.raises(QuantizationError, match="none may be negative"):
        run(weight, LayerStatistics({"hessian": -hessian}, 9))
    hessian[2, 7] = float("nan")
    with pytest.raises(QuantizationError, match=r"the Hessian holds 1 values .* the first at \[2, 7\]"):
        run(weight, LayerStatistics({"hessian": hessian}, 9))


def test_impossible_damping() -> None:
    for damp in (-0.1, float("nan")):
        with pytest.raises(RecipeError, match=f"gptq: damp is a share of the mean diagonal in 0 to 1, not {damp}"):
            gptq.Options(damp=damp)
