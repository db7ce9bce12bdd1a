"""W8A8: the codes of compressed-tensors, the reference against float64, the C++ kernels against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from llmquant.errors import LlmquantError
from llmquant.kernels.cpu import native
from llmquant.kernels.cpu import ops as cpu_ops
from llmquant.kernels.cpu import weight as cpu_weight
from llmquant.kernels.ops.linear_w8a8 import OP, quantize_tokens
from llmquant.kernels.product import PackedWeight
from llmquant.numerics.pack import pack

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HALF_ULP = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
needs_cpp = pytest.mark.skipif(native.library() is None, reason="the C++ kernels are not installed")


def weight(rows: int, cols: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    codes = torch.randint(-128, 128, (rows, cols), dtype=torch.int8)
    return codes, (torch.rand(rows, 1) * 0.02 + 1e-3).to(dtype)


def rows_of(count: int, cols: int, dtype: torch.dtype) -> Tensor:
    """Rows of many magnitudes, with outliers, a row of zeros and one whose scale is no number above 0 any more."""
    x = torch.randn(count, cols) * torch.exp2(torch.randint(-12, 8, (count, 1)).float())
    x[:, 0] *= 30
    x[:1] = 0
    x[1:2] *= 1e-36
    return x.to(dtype)


def naive(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor | None) -> Tensor:
    """The result in float64: each row by itself, each code by Python's own rounding."""
    result = torch.zeros(x.shape[0], codes.shape[0], dtype=torch.float64)
    for number, row in enumerate(x):
        step = row.abs().max() / torch.tensor(127.5, dtype=x.dtype) if input_scale is None else input_scale[0]
        step = step if float(step) else torch.tensor(torch.finfo(x.dtype).eps, dtype=x.dtype)
        quantized = [round(min(max(float(value / step), -128.0), 127.0)) for value in row]
        integers = torch.tensor(quantized, dtype=torch.float64) @ codes.double().T
        result[number] = integers * float(step) * scale.double().T
    return result if bias is None else result + bias.double()


@settings(max_examples=40)
@given(
    shape=st.sampled_from([(1, 32), (33, 64), (70, 192), (5, 172), (17, 37), (3, 2100)]),
    rows=st.integers(0, 9),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    static=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_against_float64(shape, rows, dtypes, static, bias, seed) -> None:
    torch.manual_seed(seed)
    codes, scale = weight(shape[0], shape[1], dtypes[0])
    x = rows_of(rows, shape[1], dtypes[1])
    input_scale = torch.tensor([0.05]).to(x.dtype) if static else None
    added = torch.randn(shape[0]).to(x.dtype) if bias else None
    wanted = naive(x, codes, scale, added, input_scale)
    results = [OP(x, codes, scale, added, input_scale)]
    if native.library() is not None:
        prepared = cpu_weight.prepare(PackedWeight(pack(codes, 8), scale, None, 8, shape[1]))
        for name in native.supported():
            results.append(cpu_ops.linear_w8a8(x, prepared, added, shape[0], input_scale, instructions=name))
    sums = codes.double().abs().sum(1) * scale.double()[:, 0] * (x.double().abs().amax(-1, keepdim=True) + 1e-7)
    for result in results:
        assert result.dtype == x.dtype
        assert ((result.double() - wanted).abs() <= 3e-7 * sums + 1.01 * HALF_ULP[x.dtype] * wanted.abs() + 6e-8).all()
    for other in results[2:]:
        assert torch.equal(results[1], other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("static", [False, True])
def test_codes_and_forward_of_compressed_tensors(dtype: torch.dtype, static: bool) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize, quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    x = rows_of(60, 200, dtype)[None]
    if static:
        args = QuantizationArgs(num_bits=8, strategy=QuantizationStrategy.TENSOR)
        scales, zeros = torch.tensor([0.03]).to(dtype), torch.zeros(1, dtype=torch.int8)
    else:
        args = QuantizationArgs(num_bits=8, strategy=QuantizationStrategy.TOKEN, dynamic=True)
        scales, zeros = compute_dynamic_scales_and_zp(x, args, torch.nn.Identity())
    wanted = quantize(x, scales, zeros, args)
    codes, found = quantize_tokens(x, scales if static else None)
    assert torch.equal(found, scales.to(found.dtype).expand_as(found))
    assert torch.equal(codes, wanted.to(codes.dtype))
    assert wanted.min() == -128
    # A weight of ones on the diagonal lets the C++ kernels show their codes.
    matrix, ones = torch.eye(200, dtype=torch.int8), torch.ones(200, 1, dtype=dtype)
    if native.library() is not None:
        prepared = cpu_weight.prepare(PackedWeight(pack(matrix, 8), ones, None, 8, 200))
        shown = cpu_ops.linear_w8a8(x, prepared, None, 200, scales if static else None)
        assert torch.equal(shown, fake_quantize(x, scales, zeros, args))
    # Its forward rounds the quantized inputs, the weight and the result to dtype: each by half an ulp.
    matrix, scale = weight(40, 200, dtype)
    theirs = functional.linear(fake_quantize(x, scales, zeros, args), matrix.to(dtype) * scale)
    ours = OP(x, matrix, scale, None, scales if static else None)
    sums = (codes * found).abs().double() @ (matrix.double().abs() * scale.double()).T
    allowed = 2.1 * HALF_ULP[dtype] * (sums + ours.double().abs()) + 1e-6 * sums + 6e-8 * 200
    assert ((ours.double() - theirs.double()).abs() <= allowed).all()


@needs_cpp
def test_bad_numbers_show_and_spare_the_other_rows() -> None:
    codes, scale = weight(7, 300)
    prepared = cpu_weight.prepare(PackedWeight(pack(codes, 8), scale, None, 8, 300))
    x = torch.randn(4, 300)
    x[1, 299], x[2, 3] = torch.nan, -torch.inf
    for scales in (None, torch.tensor([0.1])):
        for result in (OP(x, codes, scale, None, scales), cpu_ops.linear_w8a8(x, prepared, None, 7, scales)):
            assert result[1:3].isnan().all()
            assert result[[0, 3]].isfinite().all()
    for bad in (0.0, -0.1, torch.inf, torch.nan):
        static = torch.tensor([bad])
        assert OP(x, codes, scale, None, static).isnan().all()
        assert cpu_ops.linear_w8a8(x, prepared, None, 7, static).isnan().all()


@needs_cpp
def test_ops_gradient_compiled_autocast() -> None:
    codes, scale = weight(64, 160)
    prepared = cpu_weight.prepare(PackedWeight(pack(codes, 8), scale, None, 8, 160))
    x, bias = torch.randn(2, 3, 160, requires_grad=True), torch.randn(64, requires_grad=True)
    given = torch.tensor([0.05])
    cpu = torch.ops.llmquant.cpu_linear_w8a8.default
    for op, arguments in ((OP, (x, codes, scale, bias, given)), (cpu, (x, prepared, bias, 64, given))):
        torch.library.opcheck(
            op, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
        )
        x.grad = bias.grad = None
        result = op(*arguments)
        result.sum().backward()
        torch.testing.assert_close(x.grad, (codes * scale).sum(0).expand_as(x))
        assert bias.grad is not None
        assert torch.equal(bias.grad, torch.full((64,), 6.0))
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager")(*arguments)
        assert torch.equal(compiled, result)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(OP(x, codes, scale, bias, given), OP(x.detach(), codes, scale, bias.detach(), given))
        torch.testing.assert_close(OP(x, codes, scale, bias, given), result)


@needs_cpp
def test_shapes_that_do_not_fit_are_refused() -> None:
    codes, scale = weight(8, 64)
    prepared = cpu_weight.prepare(PackedWeight(pack(codes, 8), scale, None, 8, 64))
    with pytest.raises(RuntimeError, match=r"x is \[\.\.\., 64\]"):
        OP(torch.randn(2, 32), codes, scale)
    with pytest.raises(RuntimeError, match="int8"):
        OP(torch.randn(2, 64), codes.float(), scale)
    with pytest.raises(LlmquantError, match="inputs of the prepared weight"):
        cpu_ops.linear_w8a8(torch.randn(2, 32), prepared, None, 8)
