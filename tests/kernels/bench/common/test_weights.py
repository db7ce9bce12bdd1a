"""Random weights are what they say, and the exact product is that of their dequantized form."""

from __future__ import annotations

import pytest
import torch

from llmquant.kernels.bench.common.weights import Shape, cloned, random_weight, relative_error
from llmquant.kernels.ops.dequantize import dequantize_reference
from llmquant.spec import Scheme


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym", "int8", "int3-g32"])
def test_reference_is_the_dequantized_product(name: str) -> None:
    weight = random_weight(Scheme.parse(name), Shape(24, 64), "cpu", torch.float32)
    packed, scale, zero, bits, inputs = weight.stored
    dense = dequantize_reference(packed, scale.double(), zero, bits, inputs, torch.float64)
    torch.testing.assert_close(weight.rows64(), dense, rtol=1e-15, atol=0)
    torch.testing.assert_close(weight.rows64(step=3), dense[::3], rtol=1e-15, atol=0)
    x = torch.randn(700, 64)
    exact = x.double() @ dense.T
    assert relative_error(exact, x, weight) < 1e-14
    exact[-1] *= 2  # the last row is among those that are looked at
    assert relative_error(exact, x, weight) > 1e-2


def test_clones_are_elsewhere_and_equal() -> None:
    given = (torch.randn(4, 6).t(), (torch.arange(3), None), 7, "x")
    other = cloned(given)
    assert other[0].stride() == given[0].stride()
    assert torch.equal(other[0], given[0])
    assert other[0].data_ptr() != given[0].data_ptr()
    assert other[1][0].data_ptr() != given[1][0].data_ptr()
    assert other[2:] == (7, "x")
