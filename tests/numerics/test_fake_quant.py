"""Fake quantization gives the values of the stored tensors, bit for bit, and the gradient of exact arithmetic."""

from __future__ import annotations

import pytest
import torch

from llmquant.numerics.fake_quant import dequantize, stored_scales, straight_through
from llmquant.numerics.grid import choose_grid, round_to_grid
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.numerics.stored_scale import SMALLEST_SCALE
from llmquant.spec import Scheme


@pytest.mark.parametrize("name", ["int4-g32", "int3-g16-asym", "int8", "int4-tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_values_are_those_of_readers(name: str, dtype: torch.dtype) -> None:
    weight, scheme = torch.randn(24, 64), Scheme.parse(name)
    grid = choose_grid(weight, scheme, scale_dtype=dtype)
    stored = QuantizedTensor(round_to_grid(weight, grid, scheme), grid.scales, grid.zeros)
    scales = stored.scales.float().requires_grad_()
    read = dequantize(stored.codes, stored_scales(scales, dtype), stored.zeros, dtype)
    assert torch.equal(read, stored.dequantize().float())
    steps = stored.codes.view(24, scales.shape[1], -1).float()
    steps = steps if stored.zeros is None else steps - stored.zeros.float().unsqueeze(-1)
    wanted = torch.randn_like(read)
    (read * wanted).sum().backward()
    expected = (steps * wanted.view_as(steps)).sum(-1)
    torch.testing.assert_close(scales.grad, expected if scales.shape[0] > 1 else expected.sum().view(1, 1))


def test_scales_are_rounded_to_what_is_stored() -> None:
    scales = torch.tensor([1.001, -1e-7, 0.3])
    assert torch.equal(
        stored_scales(scales, torch.float16)[1], torch.tensor(-SMALLEST_SCALE[torch.float16]).half().float()
    )
    assert torch.equal(stored_scales(scales, torch.bfloat16), scales.bfloat16().float())


def test_straight_through() -> None:
    value = torch.tensor([0.1, 0.7], requires_grad=True)
    rounded = straight_through(value, value.detach().round())
    assert rounded.tolist() == [0, 1]
    rounded.backward(torch.tensor([2.0, 3.0]))
    assert value.grad is not None
    assert value.grad.tolist() == [2, 3]
