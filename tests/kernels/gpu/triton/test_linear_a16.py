"""The kernel for 16-bit activations against float64: formats, tails, split-K, several weights, epilogues."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from llmquant.kernels.gpu import launch, launch_a16, launch_dense, ops, weight  # noqa: F401 - ops registers what torch.ops finds
from llmquant.kernels.gpu.choose.config import DENSE, Config
from llmquant.kernels.gpu.weight import Format
from llmquant.kernels.ops.dequantize import dequantize
from llmquant.kernels.product import PackedWeight, Product

SMALL = Config(16, 64)
BOUND = 2e-6  # before the cast
FLOATS = [torch.float16, torch.float32]  # the interpreter cannot add in bfloat16
GPU_FLOATS = [*FLOATS, torch.bfloat16]


class Weight:
    """A prepared weight, and what it means in float64."""

    def __init__(self, packed, device: str = "cpu") -> None:
        scheme, (self.n, self.k) = packed.scheme, packed.codes.shape
        codes, scale = packed.packed.to(device), packed.scale.to(device)
        zero = None if packed.zero is None else packed.zero.to(device)
        self.stored: tuple[Tensor, Tensor, Tensor | None] = codes, scale, zero
        stored = PackedWeight(codes, scale, zero, scheme.bits, self.k)
        self.prepared, self.form = weight.prepare(stored), Format.of(stored).numbers()
        groups = packed.scales.shape[1]
        codes = packed.codes.double().view(self.n, groups, -1)
        if packed.zeros is not None:
            codes = codes - packed.zeros.double().unsqueeze(-1)
        self.exact = (codes * packed.scales.double().unsqueeze(-1)).reshape(self.n, self.k).to(device)


@pytest.fixture
def make(make_packed: Callable, device: str) -> Callable[..., Weight]:
    """Makes a weight: `make("int4-g32-asym", 70, 192, torch.float16)`."""
    return lambda *arguments: Weight(make_packed(*arguments), device)


def error(got: Tensor, wanted: Tensor) -> float:
    """Relative, by norms."""
    assert got.isfinite().all()
    return float((got.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "scheme",
    [
        *(f"int{bits}{size}" for bits in (4, 8) for size in ("-g32", "-g64", "-g128", "", "-tensor")),
        *(f"int{bits}{size}-asym" for bits in (4, 8) for size in ("-g32", "-g64", "-g128", "", "-tensor")),
        "int3-g64",
        "int2-g32-asym",
    ],
)
def test_every_format(make: Callable, device: str, scheme: str, dtype: torch.dtype) -> None:
    """Rows and outputs that fill no block, two tiles of inputs, scales in another dtype than x."""
    one = make(scheme, 70, 256, torch.float32 if dtype == torch.float16 else torch.bfloat16)
    x = torch.randn(3, one.k, dtype=dtype, device=device)
    out = launch.linear(x, one.prepared, None, one.n, one.form, config=SMALL, out_dtype=torch.float32)
    assert error(out, x.double() @ one.exact.T) < BOUND


@pytest.mark.parametrize(
    ("scheme", "k"),
    [
        ("int4-g96", 1920), ("int4-g160-asym", 480), ("int8-g384", 1920), ("int4-g32", 480), ("int4-g96", 480),
        ("int8", 37), ("int4-asym", 300), ("int4-g96", 96),
    ],
)  # fmt: skip
def test_inputs_that_fill_no_tile(make: Callable, device: str, scheme: str, k: int) -> None:
    """Also groups that no tile of 128 inputs holds as a whole; inputs beyond the last are not read."""
    one = make(scheme, 5, k, torch.float16)
    wide = torch.full((2, k + 200), nan, dtype=torch.float16, device=device)
    x = wide[:, :k]
    x[:] = torch.randn(2, k)
    out = launch.linear(x, one.prepared, None, one.n, one.form, config=SMALL, out_dtype=torch.float32)
    assert error(out, x.double() @ one.exact.T) < BOUND


@pytest.mark.parametrize("m", [1, 2, 5, 15, 16, 17, 33, 65])
@pytest.mark.parametrize("config", [Config(16, 128), Config(32, 64, 2), Config(64, 256, 3, 8)])
def test_rows(make: Callable, device: str, m: int, config: Config) -> None:
    """Any number of rows in blocks of any size; a row's result does not depend on the others."""
    one = make("int4-g128", 130, 512, torch.float16)
    x = torch.randn(m, one.k, dtype=torch.float16, device=device)
    out = launch.linear(x, one.prepared, None, one.n, one.form, config=config, out_dtype=torch.float32)
    assert error(out, x.double() @ one.exact.T) < BOUND
    alone = launch.linear(x[-1:], one.prepared, None, one.n, one.form, config=config, out_dtype=torch.float32)
    assert alone.equal(out[-1:])


@pytest.mark.parametrize("block_n", [64, 128, 256])
@pytest.mark.parametrize("n", [1, 130, 300])
def test_blocks_stay_inside_the_weight(make: Callable, device: str, n: int, block_n: int) -> None:
    """Also the last one, half of which there may not be."""
    from tests.kernels.gpu.probe import first_and_last

    one = make("int4-g64-asym", n, 192, torch.float16)
    has = Format.read(one.form)
    of_scales, of_zeros, _ = has.offsets(n)
    blocks = -(-n // block_n)
    ends = torch.zeros(blocks, 3, 2, dtype=torch.int64, device=device)
    constants: dict[str, Any] = {"BITS": 4, "UNIT": 64, "BLOCK_N": block_n}
    first_and_last[(blocks,)](one.prepared, ends, n, has.tiles_k, **constants)
    rows = has.rows(n)
    last = [rows * 64 * has.tiles_k - 64 * 64 * (has.tiles_k - 1) - 64, of_scales + 2 * rows - 4, of_zeros + rows - 2]
    assert ends[:, :, 1].amax(0).tolist() <= last
    assert ends[0, :, 0].tolist() == [0, of_scales, of_zeros]


@pytest.mark.parametrize("split", [1, 2, 3, 4])
def test_split_k_adds_in_order(make: Callable, device: str, split: int) -> None:
    """The same bits each time, the counters at zero for the next launch; also with more programs than tiles."""
    one = make("int4-g64-asym", 64, 384, torch.float16)
    x = torch.randn(9, one.k, dtype=torch.float16, device=device)
    config = Config(16, 64, split)
    first = launch.linear(x, one.prepared, None, one.n, one.form, config=config, out_dtype=torch.float32)
    for _ in range(3):
        again = launch.linear(x, one.prepared, None, one.n, one.form, config=config, out_dtype=torch.float32)
        assert again.equal(first)
    assert error(first, x.double() @ one.exact.T) < BOUND


def test_no_rows(make: Callable, device: str) -> None:
    """An empty batch gives an empty result."""
    one = make("int4-g32", 40, 64, torch.float16)
    x = torch.empty(2, 0, one.k, dtype=torch.float16, device=device)
    out = launch.linear(x, one.prepared, None, one.n, one.form)
    assert (out.shape, out.dtype) == ((2, 0, 40), torch.float16)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's numpy
def test_not_finite_inputs_stay_in_their_row(make: Callable, device: str) -> None:
    """NaN and infinity in some rows, and nothing of them in the others."""
    one = make("int4-g32-asym", 64, 128, torch.float16)
    x = torch.randn(6, one.k, dtype=torch.float16, device=device)
    x[1, 3], x[4, 100] = nan, inf
    out = launch.linear(x, one.prepared, None, one.n, one.form, config=Config(16, 64, 2))
    assert out[[1]].isnan().all()
    assert not out[[4]].isfinite().any()
    assert out[[0, 2, 3, 5]].isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's numpy
@pytest.mark.parametrize("fill", [0, -1])
def test_nothing_but_the_weight_is_read(make: Callable, device: str, fill: int) -> None:
    """Codes and scales of outputs that do not exist change nothing, and no output beyond the last is written."""
    one = make("int4-g32", 70, 160, torch.float16)
    has = Format.read(one.form)
    codes, scales, _ = weight.views(one.prepared, has, one.n)
    x = torch.randn(2, one.k, dtype=torch.float16, device=device)
    plain = launch.linear(x, one.prepared, None, one.n, one.form, config=SMALL)
    codes[1:, :, 6:] = fill
    scales[:, 80:] = nan
    assert launch.linear(x, one.prepared, None, one.n, one.form, config=SMALL).equal(plain)


@pytest.mark.parametrize("scheme", ["int4-g32", "int8"])
@pytest.mark.parametrize("bias", [False, True])
def test_three_weights_in_one_launch(make: Callable, device: str, scheme: str, bias: bool) -> None:
    """Queries, keys and values, of sizes that fill no block."""
    parts = [make(scheme, n, 128, torch.float16) for n in (130, 64, 33)]
    x = torch.randn(2, 3, 128, dtype=torch.float16, device=device)
    biases = [torch.randn(part.n, dtype=torch.float16, device=device) for part in parts] if bias else []
    outs = launch.linear_fused(
        x,
        Product([part.prepared for part in parts], biases, [part.n for part in parts], form=parts[0].form),
        config=Config(16, 64, 2),
        out_dtype=torch.float32,
    )
    for number, (out, part) in enumerate(zip(outs, parts, strict=True)):
        wanted = x.double() @ part.exact.T + (biases[number].double() if bias else 0)
        assert out.shape == (2, 3, part.n)
        assert error(out, wanted) < BOUND


@pytest.mark.parametrize("block_n", [64, 128])
@pytest.mark.parametrize("config", ["kernel", "dense"])
def test_gate_and_up(make: Callable, device: str, block_n: int, config: str) -> None:
    """SiLU(gate) * up plus a residual, with biases and a norm in front."""
    gate, up = (make("int4-g64", 100, 128, torch.float32) for _ in range(2))
    dtype = torch.float32
    x, residual = torch.randn(3, 128, dtype=dtype, device=device), torch.randn(3, 100, dtype=dtype, device=device)
    norm = torch.rand(128, dtype=dtype, device=device)
    biases = [torch.randn(100, dtype=dtype, device=device) for _ in range(2)]
    (out,) = launch.linear_fused(
        x,
        Product([gate.prepared, up.prepared], biases, [100, 100], True, norm, 1e-5, residual, True, gate.form),
        config=Config(16, block_n, 2) if config == "kernel" else DENSE,
    )
    normed = functional.rms_norm(x.double(), (128,), norm.double(), 1e-5)
    wanted = functional.silu(normed @ gate.exact.T + biases[0]) * (normed @ up.exact.T + biases[1]) + residual
    assert error(out, wanted) < BOUND


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-g256-asym", "int8", "int8-tensor-asym", "int3-g96"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_dense_has_the_bits_of_the_definition(make: Callable, device: str, scheme: str, dtype: torch.dtype) -> None:
    """Codes and zeros times scales, rounded to the dtype of the scales; by rows too."""
    one = make(scheme, 150, 768, torch.float16)
    codes, scale, zero = one.stored
    wanted = dequantize(codes, scale, zero, int(scheme[3]), one.k, dtype)
    has = Format.read(one.form)
    assert launch_dense.dense(one.prepared, has, one.n, dtype).equal(wanted)
    assert launch_dense.dense(one.prepared, has, one.n, dtype, 64, 70).equal(wanted[64:134])


def test_dense_products_are_made_in_pieces(make: Callable, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece of the dense weight at a time, a bias, a residual, a dtype of the result."""
    monkeypatch.setattr(launch_dense, "_BYTES", 1)
    one = make("int4-g32", 150, 64, torch.float32)
    x, bias = torch.randn(5, 64, device=device), torch.randn(150, device=device)
    out = launch.linear(x, one.prepared, bias, one.n, one.form, config=DENSE)
    assert error(out, x.double() @ one.exact.T + bias) < BOUND


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.randn(2, 64, dtype=torch.float64)}, "x is bfloat16, float16 or float32"),
        ({"x": torch.randn(2, 63)}, "got torch.float32 \\[2, 63\\]"),
        ({"out_features": 200}, "weight of 200 outputs is prepared"),
        ({"bias": torch.randn(41)}, "bias is torch.float32 \\[40\\]"),
        ({"bias": torch.randn(40).half()}, "bias is torch.float32"),
        ({"x": torch.empty(2, 64, device="meta")}, "move the model or x"),
    ],
)
def test_mistakes_are_named(make: Callable, device: str, change: dict, words: str) -> None:
    """Dtypes, shapes, devices: before anything is read that is not there."""
    one = make("int4-g32", 40, 64, torch.float16)
    good: dict[str, Any] = {
        "x": torch.randn(2, 64),
        "weight": one.prepared,
        "bias": None,
        "out_features": 40,
        "form": one.form,
    }
    arguments: dict[str, Any] = good | change
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.device.type == "cpu":
            arguments[name] = value.to(device)
    with pytest.raises(RuntimeError, match=words):
        launch.linear(**arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 2, 3, 7, 16, 31, 64, 129, 300, 1024])
@pytest.mark.parametrize("dtype", GPU_FLOATS)
@pytest.mark.parametrize("scheme", ["int4-g32", "int4-g64-asym", "int4-g128", "int4-asym", "int8", "int8-g128-asym"])
def test_on_a_gpu(make: Callable, device: str, scheme: str, dtype: torch.dtype, m: int) -> None:
    """What dispatch chooses, with outliers, into a poisoned result; twice the same bits."""
    one = make(scheme, 1100, 2048, torch.bfloat16)
    x = torch.randn(m, one.k, dtype=dtype, device=device)
    x[:, ::97] *= 30
    wanted = x.double() @ one.exact.T
    out = launch.linear(x, one.prepared, None, one.n, one.form)
    assert error(out, wanted) < {torch.float32: 4e-3, torch.float16: 4e-3, torch.bfloat16: 4e-3}[dtype]
    assert launch.linear(x, one.prepared, None, one.n, one.form).equal(out)
    exact = launch.linear(x, one.prepared, None, one.n, one.form, config=Config(16, 64, 4), out_dtype=torch.float32)
    assert error(exact, wanted) < BOUND


@pytest.mark.parametrize("ids", [[100], [-1], [3, 128]])
def test_rows_that_do_not_exist_are_refused(make: Callable, device: str, ids: list[int]) -> None:
    """Also those that only pad the weight."""
    if device == "cuda":
        pytest.skip("an assertion on a GPU ends the process")
    one = make("int4-g32", 100, 64, torch.float16)
    with pytest.raises(RuntimeError, match="outside the vocabulary of 100"):
        torch.ops.llmquant.gpu_embedding.default(torch.tensor(ids), one.prepared, 100, one.form, torch.float16)


def test_what_the_compiler_refuses_runs_dense_from_then_on(
    make: Callable, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, and not tried again; a configuration that the caller asked for is the caller's to change."""
    from triton.errors import TritonError

    from llmquant.kernels.gpu import fallback
    from llmquant.kernels.gpu.choose import dispatch

    one = make("int4-g32", 40, 64, torch.float32)
    x = torch.randn(2, 64, device=device)
    tried = []

    def refuse(*_: Any, config: Config, **__: Any) -> None:
        tried.append(config)
        raise TritonError("out of resource")

    monkeypatch.setattr(launch_a16, "linear_a16", refuse)
    monkeypatch.setattr(launch, "_of_compiler", lambda error: isinstance(error, TritonError))
    dispatch.forget()
    fallback.forget_fallbacks()
    try:
        for _ in range(3):
            out = launch.linear(x, one.prepared, None, one.n, one.form)
            assert error(out, x.double() @ one.exact.T) < BOUND
        assert len(tried) == 1
        (reason,) = fallback.fallbacks()
        assert "dense" in reason
        with pytest.raises(TritonError):
            launch.linear(x, one.prepared, None, one.n, one.form, config=SMALL)
    finally:
        dispatch.forget()
        fallback.forget_fallbacks()
