"""The Hessian is made of panels: all of it is there, above the diagonal too."""

from __future__ import annotations

import pytest
import torch

from llmquant.statistics import hessian


@pytest.mark.parametrize("features", [1, hessian.PANEL, 2 * hessian.PANEL + 77])
def test_all_of_it_is_the_mean_of_products(features: int) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(30, features), torch.randn(20, features)
    counted, other = hessian.start(), hessian.start()
    counted.add(first[:10])
    counted.add(first[10:])
    other.add(second)
    counted.merge(other)
    rows = torch.cat([first, second]).double()
    torch.testing.assert_close(counted.take().double(), rows.T @ rows / 50, rtol=1e-5, atol=1e-6)
