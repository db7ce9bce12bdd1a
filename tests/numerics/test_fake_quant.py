"""Fake quantization gives the values of the stored tensors, bit for bit, and the gradient of exact arithmetic."""

from __future__ import annotations

import pytest
import torch

from llmquant.numerics.fake_quant import dequantize, fake_quantize, stored_scales, straight_through
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


def exact(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, scheme: Scheme) -> torch.Tensor:
    """LSQ's forward by autograd alone: rounding passes gradients, clipping stops them."""
    groups = scales.shape[1]
    steps = weight.view(weight.shape[0], groups, -1) / scales.unsqueeze(-1)
    offset = 0 if zeros is None else zeros.to(weight.dtype).unsqueeze(-1)
    rounded = straight_through(steps, steps.detach().round()) + offset
    return ((rounded.clamp(scheme.code_min, scheme.code_max) - offset) * scales.unsqueeze(-1)).view(weight.shape)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", ["int4-g32", "int3-g16-asym", "int2-g8", "int8", "int4-tensor"])
def test_gradients_are_those_of_lsq(name: str, turned: bool) -> None:
    torch.manual_seed(0)
    weight, scheme = torch.randn(24, 64), Scheme.parse(name)
    grid = choose_grid(weight, scheme, scale_dtype=torch.float32)
    narrow = (grid.scales * 0.7).requires_grad_()  # so that some codes are clipped
    weight = weight.T.contiguous().T if turned else weight
    read = fake_quantize(weight.requires_grad_(), narrow, grid.zeros, scheme, torch.float32)
    wanted = torch.randn_like(read)
    (read * wanted).sum().backward()
    doubles = weight.detach().double().requires_grad_(), narrow.detach().double().requires_grad_()
    expected = exact(*doubles, grid.zeros, scheme)
    torch.testing.assert_close(read.double(), expected, rtol=1e-6, atol=1e-6)
    (expected * wanted.double()).sum().backward()
    assert weight.grad is not None
    assert narrow.grad is not None
    assert 0 < int((weight.grad == 0).sum()) < weight.numel() / 2
    for found, exactly in ((weight, doubles[0]), (narrow, doubles[1])):
        torch.testing.assert_close(
            found.grad, exactly.grad.float() if exactly.grad is not None else None, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["int4-g32", "int3-g16-asym", "int8", "int4-tensor"])
def test_a_fake_weight_is_what_readers_see(name: str, dtype: torch.dtype) -> None:
    weight, scheme = torch.randn(700, 512), Scheme.parse(name)  # several chunks
    grid = choose_grid(weight, scheme, scale_dtype=dtype)
    stored = QuantizedTensor(round_to_grid(weight, grid, scheme), grid.scales, grid.zeros)
    for out in (torch.float32, dtype):
        read = fake_quantize(weight, grid.scales.float(), grid.zeros, scheme, dtype, out)
        assert read.dtype == out
        assert torch.equal(read, stored.dequantize().to(out))
        codes = dequantize(stored.codes, grid.scales.float(), stored.zeros, dtype, out)
        assert torch.equal(codes, read)
