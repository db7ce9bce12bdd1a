"""What every statistic promises. A new file in llmquant/statistics is found by its name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmquant import statistics
from llmquant.errors import RecipeError
from llmquant.statistics.base import Statistic

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def counted(name: str, *batches: Tensor) -> Statistic:
    statistic = statistics.find(name).start()
    for batch in batches:
        statistic.add(batch)
    return statistic


def test_names_are_the_files() -> None:
    assert {"absmax", "gradients", "hessian", "samples"} <= set(statistics.names())
    assert not {"base", "collect"} & set(statistics.names())
    with pytest.raises(RecipeError, match="unknown statistic 'hesian'; did you mean 'hessian'"):
        statistics.find("hesian")


@pytest.mark.parametrize("name", statistics.names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_two_halves_merge_to_the_whole(name: str, dtype: torch.dtype) -> None:
    rows = torch.randn(1000, 24, dtype=dtype)
    kept = rows.clone()
    halves = counted(name, rows[:300], rows[300:310]), counted(name, rows[310:])
    halves[0].merge(halves[1])
    empty = counted(name)
    empty.merge(halves[0])
    empty.merge(counted(name))
    whole, merged = counted(name, rows).take(), empty.take()
    largest = whole.abs().max().item()
    torch.testing.assert_close(merged, whole, rtol=0, atol=TOLERANCE[whole.dtype] * largest)
    assert torch.equal(rows, kept)
    if name in ("absmax", "samples"):
        assert torch.equal(merged, whole)


def test_hessian() -> None:
    rows = torch.randn(50, 6, dtype=torch.float64)
    torch.testing.assert_close(counted("hessian", rows[:20], rows[20:]).take(), rows.T @ rows / 50)


def test_squared_gradients() -> None:
    rows = torch.randn(50, 6)
    torch.testing.assert_close(counted("gradients", rows[:20], rows[20:]).take(), rows.square().mean(0))


def test_samples_are_different_rows_whatever_their_order() -> None:
    rows = torch.randn(2000, 8)
    rows[::2] = rows[0]  # a row that half of the tokens have is in the sample once at most
    sample = counted("samples", rows).take()
    assert sample.shape == (256, 8)
    assert len(sample.unique(dim=0)) == 256
    assert {tuple(row) for row in sample.tolist()} <= {tuple(row) for row in rows.tolist()}
    shuffled = rows[torch.randperm(2000)]
    assert torch.equal(counted("samples", *shuffled.split(77)).take(), sample)
    assert torch.equal(counted("samples", rows[:1]).take(), rows[:1])


def test_samples_are_drawn_from_all_rows_alike() -> None:
    # Rows that differ in one number only, and a number each that says which they are.
    rows = torch.zeros(4096, 4)
    rows[:, 2] = torch.arange(4096)
    place = counted("samples", rows).take()[:, 2]
    # The mean of 256 of them: sd 4096 / sqrt(12 * 256) = 74.
    assert abs(place.mean().item() - 2047.5) < 300
    assert abs(place.std().item() - 4096 / 12**0.5) < 150
