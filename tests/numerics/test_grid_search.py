"""The search is never worse than the covering grid, finds what an exhaustive search finds, and obeys the weights."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from llmquant.numerics import grid_search
from llmquant.numerics.grid import Grid, choose_grid, round_to_grid
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

NAMES = [
    f"int{bits}{size}{asym}" for bits in (2, 3, 4, 8) for size in ("-g16", "", "-tensor") for asym in ("", "-asym")
]


def group_errors(weight: Tensor, grid: Grid, scheme: Scheme, importance: Tensor | None) -> Tensor:
    """Weighted squared error of each group, in float64 from the definition."""
    groups = grid.scales.shape[1]
    codes = round_to_grid(weight, grid, scheme).double()
    zeros = torch.zeros(grid.scales.shape) if grid.zeros is None else grid.zeros
    exact = (codes.view(len(weight), groups, -1) - zeros.double().unsqueeze(-1)) * grid.scales.double().unsqueeze(-1)
    squares = (exact.view(weight.shape) - weight.double()).square()
    if importance is not None:
        squares = squares * importance.double()
    return squares.view(len(weight), groups, -1).sum(-1).sum_to_size(grid.scales.shape)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_never_worse_than_absmax(name: str, weighted: bool) -> None:
    scheme = Scheme.parse(name)
    weight = torch.randn(8, 64).exp() * torch.randn(8, 64)
    importance = torch.rand(64).pow(4) * 1e12 if weighted else None
    errors = [
        group_errors(weight, choose_grid(weight, scheme, scale_dtype=torch.bfloat16, **options), scheme, importance)
        for options in ({}, {"objective": "mse", "importance": importance})
    ]
    # The search sums in float32.
    assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
    if scheme.bits < 8:
        assert errors[1].sum() < 0.97 * errors[0].sum()


@pytest.mark.parametrize(
    ("name", "slack"), [("int2-g16", 1.06), ("int3-g16", 1.08), ("int4-g16", 1.12), ("int2", 1.03)]
)
def test_close_to_exhaustive_search(name: str, slack: float) -> None:
    scheme = Scheme.parse(name)
    weight = torch.randn(16, 64)
    found = choose_grid(weight, scheme, scale_dtype=torch.float32, objective="mse")
    start = choose_grid(weight, scheme, scale_dtype=torch.float32)
    best = torch.full_like(start.scales, float("inf"), dtype=torch.float64)
    for factor in torch.linspace(0.15, 1.3, 400):
        for sign in (1, -1):
            best = best.minimum(group_errors(weight, Grid(start.scales * factor * sign, None), scheme, None))
    assert group_errors(weight, found, scheme, None).sum() < slack * best.sum()


@pytest.mark.parametrize(("name", "slack"), [("int2-g16-asym", 1.06), ("int3-g16-asym", 1.08), ("int3-asym", 1.04)])
def test_close_to_exhaustive_search_with_zeros(name: str, slack: float) -> None:
    scheme = Scheme.parse(name)
    weight = torch.randn(8, 64) + 0.5
    found = choose_grid(weight, scheme, scale_dtype=torch.float32, objective="mse")
    start = choose_grid(weight, scheme, scale_dtype=torch.float32)
    best = torch.full_like(start.scales, float("inf"), dtype=torch.float64)
    for factor in torch.linspace(0.2, 1.3, 150):
        for zero in range(scheme.code_min, scheme.code_max + 1):
            zeros = torch.full(start.scales.shape, zero, dtype=torch.int8)
            best = best.minimum(group_errors(weight, Grid(start.scales * factor, zeros), scheme, None))
    assert group_errors(weight, found, scheme, None).sum() < slack * best.sum()


def test_ignored_outlier_does_not_stretch_the_grid() -> None:
    weight = torch.randn(4, 64)
    weight[:, 7] = 100
    importance = torch.ones(64)
    importance[7] = 0
    grid = choose_grid(weight, Scheme(4), scale_dtype=torch.float32, objective="mse", importance=importance)
    read = QuantizedTensor(round_to_grid(weight, grid, Scheme(4)), grid.scales).dequantize()
    kept = torch.arange(64) != 7
    assert (grid.scales.abs() < 3).all()
    assert ((read - weight)[:, kept].square().mean() < 1.0).all()


def test_importance_without_any_weight_keeps_the_covering_grid() -> None:
    weight = torch.randn(4, 64)
    searched = choose_grid(weight, Scheme(4), scale_dtype=torch.float32, objective="mse", importance=torch.zeros(64))
    assert torch.equal(searched.scales, choose_grid(weight, Scheme(4), scale_dtype=torch.float32).scales)


def test_both_signs_are_tried() -> None:
    # The largest element is positive, so the covering scale is negative, but most large ones are negative.
    weight = torch.tensor([[2.1, 1.0, -2.0, -1.0, -2.0]])
    grid = choose_grid(weight, Scheme(2), scale_dtype=torch.float32, objective="mse")
    assert choose_grid(weight, Scheme(2), scale_dtype=torch.float32).scales.item() < 0
    assert grid.scales.item() > 0


@pytest.mark.parametrize("name", ["int4-g16", "int4", "int4-tensor"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_grid_between_the_rungs_is_found_by_the_refit(name: str, weighted: bool) -> None:
    # The largest code of each group is short of the end of the range, so no rung of the ladder is this grid.
    scheme = Scheme.parse(name)
    end = scheme.code_max
    codes = torch.randint(-end, end + 1, (4, 64))
    codes[:, ::16] = end
    scale = 0.37
    weight, importance = codes * scale, torch.ones(64) if weighted else None
    if importance is not None:
        noisy = torch.arange(64) % 16 >= 12
        weight[:, noisy] += (torch.rand(4, int(noisy.sum())) - 0.5) * scale
        importance[noisy] = 0
    grid = choose_grid(weight, scheme, scale_dtype=torch.float32, objective="mse", importance=importance)
    torch.testing.assert_close(grid.scales.abs(), torch.full_like(grid.scales, scale), rtol=1e-5, atol=0)


def test_the_zero_is_moved_where_a_neighbour_is_better() -> None:
    # The ladder rounds each zero for a range it clips; the inputs that weigh most may want the one beside it.
    scheme = Scheme.parse("int4-g32-asym")
    weight = torch.randn(256, 64) * torch.randn(256, 64).exp()
    importance = torch.rand(64).pow(4)
    found = choose_grid(weight, scheme, scale_dtype=torch.float32, objective="mse", importance=importance)
    assert found.zeros is not None
    best = group_errors(weight, found, scheme, importance)
    improved = torch.zeros_like(best, dtype=torch.bool)
    for shift in (-1, 1):
        zeros = (found.zeros + shift).clamp(scheme.code_min, scheme.code_max)
        improved |= group_errors(weight, Grid(found.scales, zeros), scheme, importance) < best * (1 - 1e-5)
    assert improved.float().mean() < 0.02


def test_a_second_refit_finds_more_than_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scheme = torch.randn(256, 64), Scheme.parse("int3-g16")
    errors = []
    for refits in (0, 1, grid_search.REFITS):
        monkeypatch.setattr(grid_search, "REFITS", refits)
        grid = choose_grid(weight, scheme, scale_dtype=torch.float32, objective="mse")
        errors.append(group_errors(weight, grid, scheme, None))
    assert all((later <= earlier * (1 + 1e-6)).all() for earlier, later in pairwise(errors))
    assert errors[1].sum() < 0.995 * errors[0].sum()
    assert errors[2].sum() < 0.9999 * errors[1].sum()
