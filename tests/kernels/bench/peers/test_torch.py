"""What torch brings along computes the product."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmquant.kernels.bench.common.contender import contender
from llmquant.kernels.bench.common.weights import Shape, random_weight
from llmquant.kernels.bench.peers.torch import Dense, Int4Pack, Int8Pack, IntMm
from llmquant.spec import Scheme


@pytest.mark.parametrize(
    ("kernel", "scheme", "limit"),
    [
        (Dense("bf16"), "int8", 4e-3),
        (Int4Pack(), "int4-g32", 1e-2),
        (Int4Pack(), "int4-g128-asym", 1e-2),
        (Int8Pack(), "int8", 1e-2),
        (IntMm(), "w8a8-dynamic", 1.2e-2),
    ],
)
def test_peers_of_torch_compute_the_product(kernel: Any, scheme: str, limit: float) -> None:
    weight = random_weight(Scheme.parse(scheme), Shape(64, 256), "cpu")
    check = contender(kernel, weight, 0, torch.bfloat16).check
    assert check
    found = check(20)
    assert found.problem is None
    assert found.error is not None
    assert found.error < limit
