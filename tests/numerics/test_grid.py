"""Grids: exact in the stored dtype, equal to a float64 loop, unbiased, and refusing what they cannot hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmquant.errors import QuantizationError
from llmquant.numerics.grid import Grid, choose_grid, round_to_grid
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.numerics.stored_scale import SCALE_DTYPES, SMALLEST_SCALE
from llmquant.spec import KEEP, Scheme

SCHEMES = [
    Scheme.parse(name + asym)
    for bits in (2, 3, 4, 8)
    for name in (f"int{bits}", f"int{bits}-g16", f"int{bits}-tensor")
    for asym in ("", "-asym")
] + [Scheme.parse("w8a8-dynamic")]


def by_scheme(scheme: Scheme) -> str:
    return scheme.name


def quantize(weight: Tensor, scheme: Scheme, dtype: torch.dtype, objective: str = "absmax") -> QuantizedTensor:
    grid = choose_grid(weight, scheme, scale_dtype=dtype, objective=objective)
    return QuantizedTensor(round_to_grid(weight, grid, scheme), grid.scales, grid.zeros)


def stored(value: float, dtype: torch.dtype) -> float:
    """A positive or negative scale as stored."""
    kept = math.copysign(max(abs(value), SMALLEST_SCALE[dtype]), value)
    return torch.tensor(kept, dtype=torch.float32).to(dtype).double().item()


def absmax_loop(weight: Tensor, scheme: Scheme, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and zeros, one element at a time in float64."""
    rows, cols = weight.shape
    shape = scheme.scale_shape(rows, cols)
    codes, scales, zeros = np.zeros((rows, cols)), np.zeros(shape), np.zeros(shape)
    height, width = rows // shape[0], cols // shape[1]
    values = weight.double().numpy()
    for r in range(shape[0]):
        for g in range(shape[1]):
            block = np.s_[r * height : (r + 1) * height, g * width : (g + 1) * width]
            low, high = min(0.0, values[block].min()), max(0.0, values[block].max())
            zero = 0.0
            if low == high:
                scale = 1.0
            elif scheme.symmetric:
                scale = stored((high if high > -low else low) / scheme.code_min, dtype)
            else:
                scale = stored((high - low) / (scheme.code_max - scheme.code_min), dtype)
                zero = np.clip(scheme.code_min - np.round(low / scale), scheme.code_min, scheme.code_max)
            scales[r, g], zeros[r, g] = scale, zero
            codes[block] = np.clip(np.round(values[block] / scale) + zero, scheme.code_min, scheme.code_max)
    return codes, scales, zeros


@pytest.mark.parametrize("scheme", SCHEMES, ids=by_scheme)
@pytest.mark.parametrize("dtype", SCALE_DTYPES, ids=str)
def test_equals_loop(scheme: Scheme, dtype: torch.dtype) -> None:
    weight = torch.randn(6, 48).to(dtype)
    weight[0, :16] = 0
    weight[1, :16] = weight[1, :16].abs() + 1
    got = quantize(weight, scheme, dtype)
    codes, scales, zeros = absmax_loop(weight, scheme, dtype)
    assert got.codes.dtype == torch.int8
    assert got.scales.dtype == dtype
    assert np.array_equal(got.scales.double().numpy(), scales)
    assert np.array_equal(got.codes.numpy(), codes)
    if scheme.symmetric:
        assert got.zeros is None
    else:
        assert got.zeros is not None
        assert got.zeros.dtype == torch.int8
        assert np.array_equal(got.zeros.numpy(), zeros)


@pytest.mark.parametrize("dtype", SCALE_DTYPES, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_largest_element_takes_the_extra_code(bits: int, dtype: torch.dtype) -> None:
    weight = torch.randn(64, 32)
    got = quantize(weight, Scheme(bits), dtype)
    at = weight.abs().argmax(1, keepdim=True)
    assert (got.codes.gather(1, at) == -(1 << (bits - 1))).all()
    largest = weight.gather(1, at)
    assert torch.equal(got.scales < 0, largest > 0)
    torch.testing.assert_close(got.dequantize().gather(1, at).float(), largest, rtol=torch.finfo(dtype).eps, atol=0)


@settings(max_examples=80)
@given(
    scheme=st.sampled_from(SCHEMES),
    dtype=st.sampled_from(SCALE_DTYPES),
    objective=st.sampled_from(["absmax", "mse"]),
    exponent=st.integers(-3, 3),
    shift=st.sampled_from([0.0, 0.0, 3.0, -3.0]),
    seed=st.integers(0, 2**31),
)
def test_properties(scheme: Scheme, dtype: torch.dtype, objective: str, exponent: int, shift: float, seed: int) -> None:
    torch.manual_seed(seed)
    weight = (torch.randn(4, 32) + shift) * 10.0**exponent
    got = quantize(weight, scheme, dtype, objective)
    assert got.codes.min() >= scheme.code_min
    assert got.codes.max() <= scheme.code_max
    assert got.scales.abs().min() >= stored(0.0, dtype)
    zero = torch.zeros_like(got.scales) if got.zeros is None else got.zeros
    assert zero.min() >= scheme.code_min
    assert zero.max() <= scheme.code_max
    # Inside the range of the grid the error is at most half a step; beyond it, the end of the range is taken.
    groups = weight.double().view(4, got.scales.shape[1], -1)
    scale, zero = got.scales.double().unsqueeze(-1), zero.double().unsqueeze(-1)
    exact = scale * (got.codes.view(groups.shape).double() - zero)
    ends = torch.stack([scale * (scheme.code_min - zero), scale * (scheme.code_max - zero)])
    nearest = groups.clamp(ends.amin(0), ends.amax(0))
    assert ((exact - nearest).abs() <= scale.abs() * (0.5 + 1e-6)).all()
    # What a reader dequantizes differs from that by the rounding of its dtype only, and rounds to the same codes.
    read = got.dequantize()
    torch.testing.assert_close(read.double(), exact.view(4, 32), rtol=torch.finfo(dtype).eps, atol=1e-7)
    again = round_to_grid(read, Grid(got.scales, got.zeros), scheme)
    if dtype == torch.bfloat16 and scheme.bits == 8 and not scheme.symmetric:
        # code - zero reaches 255 steps, and half a unit of bfloat16 is 1/256 of that: the neighbour may be as near.
        assert (again.int() - got.codes.int()).abs().max() <= 1
    else:
        assert torch.equal(again, got.codes)


@pytest.mark.parametrize("asym", ["", "-asym"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_has_no_bias(bits: int, asym: str) -> None:
    weight = torch.rand(400, 256) * 2 - 1
    scheme = Scheme.parse(f"int{bits}-g32{asym}")
    got = quantize(weight, scheme, torch.float32)
    inside = (got.codes > scheme.code_min) & (got.codes < scheme.code_max)
    error = (got.dequantize() - weight)[inside]
    error = error[error != 0]
    below = (error < 0).double().mean().item()
    assert abs(below - 0.5) < 5 * 0.5 / math.sqrt(error.numel())


def test_ties_go_to_even_multiples_of_the_scale() -> None:
    weight = torch.tensor([[-8.0, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5]])
    scheme = Scheme(4)
    grid = Grid(torch.ones(1, 1), None)
    assert round_to_grid(weight, grid, scheme).tolist() == [[-8, -2, -2, 0, 0, 2, 2, 4]]
    odd = Grid(torch.ones(1, 1), torch.tensor([[1]], dtype=torch.int8))
    assert round_to_grid(weight, odd, scheme).tolist() == [[-7, -1, -1, 1, 1, 3, 3, 5]]


@pytest.mark.parametrize("objective", ["absmax", "mse"])
@pytest.mark.parametrize("name", ["int4-g16", "int4-g16-asym", "int8", "int3-tensor-asym"])
def test_groups_of_zeros(name: str, objective: str) -> None:
    scheme = Scheme.parse(name)
    weight = torch.zeros(3, 32)
    grid = choose_grid(weight, scheme, scale_dtype=torch.bfloat16, objective=objective)
    assert grid.zero_groups == grid.scales.numel()
    assert (grid.scales == 1).all()
    assert grid.zeros is None or (grid.zeros == 0).all()
    assert (round_to_grid(weight, grid, scheme) == 0).all()
    weight[1, 20] = 1
    assert choose_grid(weight, scheme, scale_dtype=torch.bfloat16).zero_groups == grid.zero_groups - 1


@pytest.mark.parametrize("dtype", SCALE_DTYPES, ids=str)
@pytest.mark.parametrize("name", ["int4", "int8-asym"])
def test_tiny_weights_keep_a_positive_scale(name: str, dtype: torch.dtype) -> None:
    scheme = Scheme.parse(name)
    weight = torch.full((1, 8), 1e-38)
    weight[0, 0] = -1e-38
    got = quantize(weight, scheme, dtype)
    assert got.scales.abs().item() == torch.tensor(SMALLEST_SCALE[dtype]).to(dtype)
    assert torch.isfinite(got.dequantize()).all()
    assert (got.dequantize().float() - weight).abs().max() <= SMALLEST_SCALE[dtype]


@pytest.mark.parametrize("name", ["int4", "int8-g4-asym"])
def test_weights_too_large_for_float16_are_refused(name: str) -> None:
    # A float16 scale holds 3e5 / 8, but not the weight that it stands for.
    weight = torch.tensor([[3e5, -1.0, 0.0, 2.0]])
    with pytest.raises(QuantizationError, match=r"1 of 1 groups reach [23].*e\+05, more than torch\.float16 holds"):
        choose_grid(weight, Scheme.parse(name), scale_dtype=torch.float16)
    with pytest.raises(QuantizationError, match=r"more than torch\.float16 holds"):
        choose_grid(weight * 1e6, Scheme.parse(name), scale_dtype=torch.float16, objective="mse")
    assert torch.isfinite(quantize(weight * 1e30, Scheme.parse(name), torch.bfloat16).dequantize()).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=by_scheme)
@pytest.mark.parametrize("objective", ["absmax", "mse"])
def test_chunks_do_not_show(scheme: Scheme, objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(12, 32)
    whole = choose_grid(weight, scheme, scale_dtype=torch.bfloat16, objective=objective)
    monkeypatch.setattr("llmquant.numerics.threads._CPU_CHUNK", 100)
    parts = choose_grid(weight, scheme, scale_dtype=torch.bfloat16, objective=objective)
    assert torch.equal(parts.scales, whole.scales)
    assert (parts.zeros is None) == (whole.zeros is None)
    if parts.zeros is not None and whole.zeros is not None:
        assert torch.equal(parts.zeros, whole.zeros)


def test_weight_is_read_only_and_may_be_a_view() -> None:
    weight = torch.randn(32, 8)
    kept = weight.clone()
    scheme = Scheme.parse("int4-g16")
    grid = choose_grid(weight.t(), scheme, scale_dtype=torch.float32, objective="mse")
    same = choose_grid(weight.t().contiguous(), scheme, scale_dtype=torch.float32, objective="mse")
    assert torch.equal(grid.scales, same.scales)
    codes = round_to_grid(weight.t(), grid, scheme)
    assert torch.equal(codes, round_to_grid(weight.t().contiguous(), grid, scheme))
    assert torch.equal(weight, kept)


@pytest.mark.usefixtures("shapes_unchecked")
def test_refuses_wrong_arguments() -> None:
    weight, scheme = torch.randn(2, 24), Scheme.parse("int4-g16")
    with pytest.raises(QuantizationError, match="groups of 16 do not divide in_features = 24"):
        choose_grid(weight, scheme, scale_dtype=torch.float32)
    with pytest.raises(QuantizationError, match="the weight holds 1 values that are NaN"):
        choose_grid(torch.tensor([[1.0, float("nan")]]), Scheme(4), scale_dtype=torch.float32)
    for changes, message in [
        ({"scale_dtype": torch.float64}, "scales are float32, float16 or bfloat16, not torch.float64"),
        ({"objective": "mae"}, "objective is one of absmax, mse, not 'mae'"),
        ({"importance": torch.ones(23)}, r"importance has shape \[23\], not in_features = 24"),
        ({"importance": -torch.ones(24)}, "importance must not be negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            choose_grid(weight, Scheme(4), **{"scale_dtype": torch.float32, **changes})
    with pytest.raises(ValueError, match="'keep' has no grid"):
        choose_grid(weight, KEEP, scale_dtype=torch.float32)
    with pytest.raises(ValueError, match="expected a weight"):
        choose_grid(weight[0], Scheme(4), scale_dtype=torch.float32)
