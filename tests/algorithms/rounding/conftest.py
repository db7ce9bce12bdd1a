"""A layer with correlated inputs of very different sizes, as transformers have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmquant.statistics import find, names
from llmquant.statistics.base import LayerStatistics


def correlated_inputs(tokens: int, in_features: int) -> Tensor:
    """Inputs with a power-law spectrum and log-normal channel gains."""
    basis = torch.linalg.qr(torch.randn(in_features, in_features)).Q
    spectrum = torch.arange(1, in_features + 1).rsqrt()
    return torch.randn(tokens, in_features) @ (basis * spectrum) @ basis.t() * (0.6 * torch.randn(in_features)).exp()


@pytest.fixture
def weight() -> Tensor:
    """(24, 160) float32: more than one block of GPTQ, and no multiple of it."""
    return torch.randn(24, 160) * (0.3 * torch.randn(24, 1)).exp()


@pytest.fixture
def statistics() -> LayerStatistics:
    """All that there are, of 640 correlated inputs of the layer and as many gradients of its outputs."""
    rows = {"inputs": correlated_inputs(640, 160), "gradients": torch.randn(640, 24)}
    values = {}
    for name in names():
        statistic = find(name).start()
        statistic.add(rows[find(name).OF])
        values[name] = statistic.take()
    return LayerStatistics(values, 640)
