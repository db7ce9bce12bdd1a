"""The ops on prepared weights: against float64, on every instruction set, with bad inputs, fused, compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from llmquant.kernels.cpu import native
from llmquant.kernels.cpu import ops as cpu_ops
from llmquant.kernels.cpu import weight as cpu_weight
from llmquant.kernels.product import PackedWeight, Product
from llmquant.numerics.pack import pack, pack_zeros
from llmquant.spec import BITS

pytestmark = pytest.mark.skipif(native.library() is None, reason="the C++ kernels are not installed")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rounding of the result to its dtype, relative to it.
ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def make(bits: int, rows: int, cols: int, group: int, dtype=torch.float32, asymmetric=False) -> tuple[Tensor, Tensor]:
    """A prepared weight and the weight itself in float64: the products are not rounded to the dtype of the scales."""
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    codes = torch.randint(low, high, (rows, cols), dtype=torch.int8)
    scale = (torch.randn(rows, cols // group) * 0.02).to(dtype)
    zeros = torch.randint(low, high, scale.shape, dtype=torch.int8) if asymmetric else None
    zero = None if zeros is None else pack_zeros(zeros, bits)
    weight = codes.double()
    if zeros is not None:
        weight -= zeros.double().repeat_interleave(group, 1)
    return cpu_weight.prepare(
        PackedWeight(pack(codes, bits), scale, zero, bits, cols)
    ), weight * scale.double().repeat_interleave(group, 1)


def bound(x: Tensor, weight: Tensor, block: int, exact: bool) -> Tensor:
    """What quantizing `x` can change at most: half a step of its block times the weights there, by the triangle."""
    padded = functional.pad(x.double().abs(), (0, -x.shape[-1] % block)).unflatten(-1, (-1, block))
    step = padded.amax(-1) / (32639 if exact else 127)
    sums = functional.pad(weight.abs(), (0, -x.shape[-1] % block)).unflatten(-1, (-1, block)).sum(-1)
    return step / 2 @ sums.T


@settings(max_examples=80)
@given(
    bits=st.sampled_from(BITS),
    shape=st.sampled_from([(1, 32), (33, 64), (70, 192), (5, 172), (17, 37), (64, 256), (96, 33), (40, 384)]),
    rows=st.integers(0, 19),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    asymmetric=st.booleans(),
    exact=st.booleans(),
    bias=st.booleans(),
    outliers=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_against_float64_on_every_instruction_set(
    bits, shape, rows, dtypes, asymmetric, exact, bias, outliers, seed
) -> None:
    torch.manual_seed(seed)
    out_features, in_features = shape
    fitting = [size for size in (32, 64, 128) if in_features % size == 0]
    group = fitting[seed % len(fitting)] if fitting else in_features
    prepared, weight = make(bits, out_features, in_features, group, dtypes[0], asymmetric)
    x = torch.randn(rows, in_features)
    if outliers:
        x[:, torch.randint(in_features, (2,))] *= 30
    x = x.to(dtypes[1])
    added = torch.randn(out_features).to(dtypes[1]) if bias else None
    wanted = x.double() @ weight.T + (added.double() if added is not None else 0)
    block = cpu_weight.header(prepared).block
    # Sums of float32: some ulp of the largest magnitude on the way.
    sums = x.double().abs() @ weight.abs().T + 30 * weight.abs().sum(1)
    allowed = bound(x, weight, block, exact) + 1e-6 * sums + 2 * ROUNDING[x.dtype] * wanted.abs() + 1e-7
    results = [
        cpu_ops.linear(x, prepared, added, out_features, exact, instructions=name) for name in native.supported()
    ]
    assert results[0].dtype == x.dtype
    assert results[0].shape == wanted.shape
    assert ((results[0].double() - wanted).abs() <= allowed).all()
    for other in results[1:]:
        assert torch.equal(results[0], other)


@pytest.mark.parametrize(("exact", "limit", "with_outliers"), [(True, 1e-4, 1.1e-4), (False, 8e-3, 4e-2)])
@pytest.mark.parametrize("scheme", [(4, 128), (4, 32), (8, 512)])
def test_stated_error(scheme, exact, limit, with_outliers) -> None:
    bits, group = scheme
    prepared, weight = make(bits, 256, 512, group)
    x = torch.randn(16, 512)
    for allowed in (limit, with_outliers):
        wanted = x.double() @ weight.T
        error = (cpu_ops.linear(x, prepared, None, 256, exact) - wanted).norm() / wanted.norm()
        assert allowed / 300 < error < allowed  # not better either: then it would not be the mode we asked for
        x[:, ::97] *= 30


def test_a_row_does_not_depend_on_the_others_nor_on_threads() -> None:
    prepared, _ = make(4, 700, 512, 64, asymmetric=True)
    x = torch.randn(300, 512)
    for exact in (True, False):
        whole = cpu_ops.linear(x, prepared, None, 700, exact)
        for row in (0, 7, 150, 299):
            assert torch.equal(cpu_ops.linear(x[row], prepared, None, 700, exact), whole[row])
        assert torch.equal(cpu_ops.linear(x[:13], prepared, None, 700, exact), whole[:13])
        before = torch.get_num_threads()
        try:
            for threads in (2, 3, 5):
                torch.set_num_threads(threads)
                assert torch.equal(cpu_ops.linear(x, prepared, None, 700, exact), whole)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_a_number_is_not_hidden(exact, bad) -> None:
    prepared, weight = make(4, 40, 256, 128)
    x = torch.randn(3, 256)
    x[1, 200] = bad
    for name in native.supported():
        got = cpu_ops.linear(x, prepared, None, 40, exact, instructions=name)
        assert not got[1].isfinite().any()
        wanted = x[::2].double() @ weight.T
        assert ((got[::2] - wanted).norm() < 0.02 * wanted.norm()).all()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("size", [0.0, 1e-34, 1e-30, 1e30, 1e37])
def test_extreme_sizes(exact, size) -> None:
    prepared, weight = make(4, 40, 256, 128)
    x = torch.randn(3, 256) * size
    got = cpu_ops.linear(x, prepared, None, 40, exact)
    wanted = x.double() @ weight.T
    assert ((got - wanted).norm() <= (1e-4 if exact else 1e-2) * wanted.norm()).all()


def test_rows_of_zeros_give_the_bias() -> None:
    prepared, _ = make(8, 40, 256, 256, asymmetric=True)
    bias = torch.randn(40)
    assert torch.equal(cpu_ops.linear(torch.zeros(5, 256), prepared, bias, 40, True), bias.expand(5, 40))


def test_shapes() -> None:
    prepared, _ = make(4, 40, 64, 32)
    for shape in ((64,), (0, 64), (2, 0, 64), (2, 3, 64)):
        assert cpu_ops.linear(torch.randn(shape), prepared, None, 40, True).shape == (*shape[:-1], 40)
    transposed = torch.randn(64, 5).T
    assert torch.equal(
        cpu_ops.linear(transposed, prepared, None, 40, True),
        cpu_ops.linear(transposed.contiguous(), prepared, None, 40, True),
    )


def test_wrong_inputs_are_refused() -> None:
    prepared, _ = make(4, 40, 64, 32)
    op = torch.ops.llmquant.cpu_linear.default
    with pytest.raises(RuntimeError, match=r"x is a float32, bfloat16 or float16 .* got torch.float64"):
        op(torch.ones(1, 64, dtype=torch.float64), prepared, None, 40, True)
    with pytest.raises(RuntimeError, match=r"the bias is torch.float32 \[40\]"):
        op(torch.ones(1, 64), prepared, torch.ones(40, dtype=torch.float16), 40, True)
    fused = torch.ops.llmquant.cpu_linear_fused.default
    with pytest.raises(RuntimeError, match="one to 4 weights"):
        fused(torch.ones(1, 64), [prepared] * 5, [], [40] * 5, True)
    with pytest.raises(RuntimeError, match=r"the norm is torch.float32 \[64\] .* got torch.float32 \[63\]"):
        fused(torch.ones(1, 64), [prepared], [], [40], True, torch.ones(63))
    with pytest.raises(RuntimeError, match=r"the residual is torch.float32 \[1, 40\]"):
        fused(torch.ones(1, 64), [prepared], [], [40], True, None, 0.0, torch.ones(1, 41))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5])
def test_fused(dtype, rows) -> None:
    parts = [make(4, width, 160, 32, torch.bfloat16, asymmetric=True) for width in (48, 20, 33)]
    weights, dense = zip(*parts, strict=True)
    widths = [weight.shape[0] for weight in dense]
    x, norm = torch.randn(2, rows, 160, dtype=dtype), torch.randn(160, dtype=dtype)
    biases = [torch.randn(width, dtype=dtype) for width in widths]
    normed = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.double()
    fused = torch.ops.llmquant.cpu_linear_fused.default
    tolerance = 1e-4 + 2 * ROUNDING[dtype]

    got = fused(x, list(weights), biases, widths, True, norm, 1e-5)
    for out, weight, bias in zip(got, dense, biases, strict=True):
        wanted = normed @ weight.T + bias.double()
        assert out.dtype == dtype
        assert (out - wanted).norm() < tolerance * wanted.norm()

    residual = torch.randn(2, rows, 48, dtype=dtype)
    (out,) = fused(x, [weights[0]], [], [48], True, None, 0.0, residual)
    wanted = x.double() @ dense[0].T + residual.double()
    assert (out - wanted).norm() < tolerance * wanted.norm()

    up, up_dense = make(8, 48, 160, 32)
    (out,) = fused(x, [weights[0], up], [biases[0], biases[0]], [48, 48], True, norm, 1e-5, None, True)
    gate = normed @ dense[0].T + biases[0].double()
    wanted = functional.silu(gate) * (normed @ up_dense.T + biases[0].double())
    assert (out - wanted).norm() < 2 * tolerance * wanted.norm()


def test_silu_over_its_range() -> None:
    # One input through two weights of 1 shows the function itself.
    one = cpu_weight.prepare(PackedWeight(pack(torch.ones(1, 1, dtype=torch.int8), 8), torch.ones(1, 1), None, 8, 1))
    x = torch.linspace(-110, 110, 4001)[:, None]
    (got,) = cpu_ops.linear_fused(x, Product([one, one], [], [1, 1], True, silu=True))
    # A single input is its block's largest, so it is quantized to the last bit; the exponential multiplies that by x.
    wanted = functional.silu(x.double()) * x.double()
    assert ((got - wanted).abs() <= 3e-7 * (1 + x.abs()) * wanted.abs() + 1e-30).all()


def test_opcheck_and_gradients() -> None:
    prepared, weight = make(4, 40, 64, 32)
    op = torch.ops.llmquant.cpu_linear.default
    x = torch.randn(2, 3, 64, requires_grad=True)
    bias = torch.randn(40, requires_grad=True)
    torch.library.opcheck(op, (x, prepared, bias, 40, True))
    torch.library.opcheck(torch.ops.llmquant.cpu_linear_fused.default, (x.detach(), [prepared], [], [40], True))
    torch.library.opcheck(torch.ops.llmquant.cpu_embedding.default, (torch.tensor([3]), prepared, 64, torch.float32))
    seed = torch.randn(2, 3, 40)
    op(x, prepared, bias, 40, True).backward(seed)
    assert x.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(x.grad, (seed.double() @ weight).float())
    torch.testing.assert_close(bias.grad, seed.sum((0, 1)))


def test_compiles_without_a_break(make_packed: Callable) -> None:
    prepared, _ = make(4, 64, 64, 32)

    def network(x: Tensor) -> Tensor:
        hidden = functional.silu(torch.ops.llmquant.cpu_linear.default(x, prepared, None, 64, True))
        return torch.ops.llmquant.cpu_linear_fused.default(hidden, [prepared, prepared], [], [64, 64], False)[1]

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for rows in (1, 4):
        x = torch.randn(rows, 64)
        assert torch.equal(compiled(x), network(x))
