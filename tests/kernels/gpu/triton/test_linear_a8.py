"""The kernels for 8-bit activations: W8A8 has the bits of its reference, W4A8 those of its definition, nearly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, nan

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton", reason="triton is not installed: pip install 'llmquant[gpu]'")

import triton
import triton.language as tl

from llmquant.kernels.gpu import fallback, launch_a8, ops, weight
from llmquant.kernels.gpu.choose.config import Config
from llmquant.kernels.gpu.triton import linear_a8
from llmquant.kernels.gpu.weight import Format
from llmquant.kernels.ops.linear_w8a8 import OP, linear_reference
from llmquant.kernels.product import PackedWeight, Product

SMALL = Config(16, 64)
BOUND = 2e-6  # of the definition, before the cast
FLOATS = [torch.float16, torch.float32]  # the interpreter cannot add in bfloat16
GPU_FLOATS = [*FLOATS, torch.bfloat16]


class Weight:
    """A prepared weight, and what it means in float64."""

    def __init__(self, packed, device: str) -> None:
        scheme, (self.n, self.k) = packed.scheme, packed.codes.shape
        scale, zero = packed.scale.to(device), None if packed.zero is None else packed.zero.to(device)
        stored = PackedWeight(packed.packed.to(device), scale, zero, scheme.bits, self.k)
        self.prepared, self.has = weight.prepare(stored), Format.of(stored)
        self.form = self.has.numbers()
        groups = packed.scales.shape[1]
        codes = packed.codes.double().view(self.n, groups, -1)
        if packed.zeros is not None:
            codes = codes - packed.zeros.double().unsqueeze(-1)
        self.exact = (codes * packed.scales.double().unsqueeze(-1)).reshape(self.n, self.k).to(device)

    def quantized(self, x: Tensor) -> Tensor:
        """x (m, k) as the kernel sees it, in float64: by the definition in quantize.py, of this weight's blocks."""
        size = self.has.unit if 0 < self.has.unit < 128 else 128
        blocks = functional.pad(x.float(), (0, -self.k % size)).unflatten(1, (-1, size))
        largest = blocks.abs().amax(-1, keepdim=True).clamp(min=2.0**-112)
        codes = (blocks * (torch.tensor(127.0) / largest)).round()
        return (codes.double() * (largest / 2032).double() * 16).flatten(1)[:, : self.k]


@pytest.fixture
def make(make_packed: Callable, device: str) -> Callable[..., Weight]:
    """Makes a weight: `make("int4-g32-asym", 70, 192, torch.float16)`."""
    return lambda *arguments: Weight(make_packed(*arguments), device)


def error(got: Tensor, wanted: Tensor) -> float:
    """Relative, by norms."""
    assert got.isfinite().all()
    return float((got.double() - wanted).norm() / wanted.norm())


def product(
    *parts: Weight, biases: Sequence[Tensor] = (), residual: Tensor | None = None, silu: bool = False
) -> Product:
    """Of prepared weights of one format."""
    weights, sizes = [part.prepared for part in parts], [part.n for part in parts]
    return Product(weights, biases, sizes, residual=residual, silu=silu, form=parts[0].form)


def w4a8(x: Tensor, one: Weight, config: Config = SMALL, dtype: torch.dtype = torch.float32) -> Tensor:
    return launch_a8.linear_w4a8(x, product(one), config=config, out_dtype=dtype)[0]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "scheme",
    [f"int4{size}{asym}" for size in ("-g32", "-g64", "-g128", "-g256", "", "-tensor") for asym in ("", "-asym")]
    + ["int3-g64", "int2-g32-asym"],
)
def test_every_format(make: Callable, device: str, scheme: str, dtype: torch.dtype) -> None:
    """Rows and outputs that fill no block, scales in another dtype than x."""
    one = make(scheme, 70, 256, torch.float32 if dtype == torch.float16 else torch.bfloat16)
    x = torch.randn(3, one.k, dtype=dtype, device=device)
    out = w4a8(x, one)
    assert error(out, one.quantized(x) @ one.exact.T) < BOUND
    assert 1e-3 < error(out, x.double() @ one.exact.T) < 1.2e-2


@pytest.mark.parametrize(
    ("scheme", "k"), [("int4-g96-asym", 480), ("int4-g160", 480), ("int4-g384-asym", 1920), ("int4", 37)]
)
def test_inputs_that_fill_no_tile(make: Callable, device: str, scheme: str, k: int) -> None:
    """Also groups that no tile of 128 inputs holds as a whole; inputs beyond the last are not read."""
    one = make(scheme, 5, k, torch.float16)
    x = torch.full((2, k + 200), nan, dtype=torch.float16, device=device)[:, :k]
    x[:] = torch.randn(2, k)
    assert error(w4a8(x, one), one.quantized(x) @ one.exact.T) < BOUND


@pytest.mark.parametrize(
    ("m", "config"),
    [
        (1, Config(16, 128)),
        (15, Config(16, 64, 2)),
        (16, SMALL),
        (17, SMALL),
        (33, Config(32, 64)),
        (65, Config(64, 128, 3, 8)),
    ],
)
def test_rows(make: Callable, device: str, m: int, config: Config) -> None:
    """Any number of rows in blocks of any size; a row's result does not depend on the others."""
    one = make("int4-g128", 70, 384, torch.float16)
    x = torch.randn(m, one.k, dtype=torch.float16, device=device)
    out = w4a8(x, one, config)
    assert error(out, one.quantized(x) @ one.exact.T) < BOUND
    assert w4a8(x[-1:], one, config).equal(out[-1:])


@triton.jit
def _count(seen, BLOCK_M: tl.constexpr):
    """Count the programs that compute each block (outputs, rows)."""
    block = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    block_m, block_n = linear_a8._place(block, BLOCK_M)  # pyright: ignore[reportGeneralTypeIssues]
    at = seen + block_n * tl.num_programs(0) + block_m
    tl.store(at, tl.load(at) + 1)


def test_every_block_is_computed_once(make: Callable, device: str) -> None:
    """Large blocks of rows go in groups of eight, the last of them smaller."""
    for across, down in ((1, 3), (7, 2), (8, 3), (9, 1), (9, 4), (16, 2), (21, 3)):
        for block_m in (16, 128):
            seen = torch.zeros(across * down, dtype=torch.int32, device=device)
            _count[(across, down)](seen, BLOCK_M=block_m)  # pyright: ignore[reportArgumentType]
            assert (seen == 1).all()
    one = make("int4-g64", 70, 64, torch.float16)
    x = torch.randn(64 * 9 - 3, 64, dtype=torch.float16, device=device)
    assert error(w4a8(x, one, Config(64, 64)), one.quantized(x) @ one.exact.T) < BOUND


@pytest.mark.parametrize("split", [1, 2, 3, 4])
def test_split_k_adds_in_order(make: Callable, device: str, split: int) -> None:
    """The same bits each time, the counters at zero for the next launch; also with more programs than tiles."""
    one = make("int4-g64-asym", 64, 384, torch.float16)
    x = torch.randn(9, one.k, dtype=torch.float16, device=device)
    first = w4a8(x, one, Config(16, 64, split))
    for _ in range(3):
        assert w4a8(x, one, Config(16, 64, split)).equal(first)
    assert error(first, one.quantized(x) @ one.exact.T) < BOUND


@pytest.mark.parametrize("scheme", ["int4-g32-asym", "int4"])
def test_not_finite_inputs_stay_in_their_row(make: Callable, device: str, scheme: str) -> None:
    """NaN and infinity make their rows NaN; zeros and what is too small to divide by make zeros."""
    one = make(scheme, 64, 256, torch.float16)
    x = torch.randn(6, one.k, device=device)
    x[1, 3], x[4, 255], x[0], x[5] = nan, -inf, 0, 1e-38
    out = w4a8(x, one, Config(16, 64, 2))
    assert out[[1, 4]].isnan().all()
    assert out[[2, 3]].isfinite().all()
    assert not out[[0, 5]].any()


def test_no_rows(make: Callable, device: str) -> None:
    """An empty batch gives an empty result, whatever dispatch would choose."""
    one = make("int4-g32", 40, 64, torch.float16)
    (out,) = launch_a8.linear_w4a8(torch.empty(0, 64, dtype=torch.float16, device=device), product(one))
    assert (out.shape, out.dtype) == ((0, 40), torch.float16)


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-asym"])
@pytest.mark.parametrize("bias", [False, True])
def test_three_weights_in_one_launch(make: Callable, device: str, scheme: str, bias: bool) -> None:
    """Queries, keys and values, of sizes that fill no block."""
    parts = [make(scheme, n, 128, torch.float16) for n in (130, 64, 33)]
    x = torch.randn(3, 128, dtype=torch.float16, device=device)
    biases = [torch.randn(part.n, dtype=torch.float16, device=device) for part in parts] if bias else []
    outs = launch_a8.linear_w4a8(x, product(*parts, biases=biases), config=Config(16, 64, 2), out_dtype=torch.float32)
    for number, (out, part) in enumerate(zip(outs, parts, strict=True)):
        wanted = part.quantized(x) @ part.exact.T + (biases[number].double() if bias else 0)
        assert out.shape == (3, part.n)
        assert error(out, wanted) < BOUND


@pytest.mark.parametrize("block_n", [64, 128])
@pytest.mark.parametrize("asym", ["", "-asym"])
def test_gate_and_up(make: Callable, device: str, block_n: int, asym: str) -> None:
    """SiLU(gate) * up plus a residual, with biases."""
    gate, up = (make(f"int4-g64{asym}", 100, 128, torch.float16) for _ in range(2))
    x, residual = 0.1 * torch.randn(3, 128, device=device), torch.randn(3, 100, device=device)
    biases = [torch.randn(100, device=device) for _ in range(2)]
    asked = product(gate, up, biases=biases, residual=residual, silu=True)
    (out,) = launch_a8.linear_w4a8(x, asked, config=Config(16, block_n, 2))
    seen = gate.quantized(x)
    wanted = functional.silu(seen @ gate.exact.T + biases[0]) * (seen @ up.exact.T + biases[1]) + residual
    assert error(out, wanted) < BOUND


def w8a8_case(m: int, n: int, k: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x with many magnitudes, a row of zeros, a tiny one, and two that are not finite; weight, scale, bias."""
    x = torch.randn(m, k) * torch.exp2(torch.randint(-12, 8, (m, 1)).float())
    x[:, 0] *= 30
    for row, value in enumerate((0.0, 1e-37, nan, inf)):
        x[row + 1 : row + 2, row % k] = value
        x[row + 1 : row + 2] *= float(row > 0)
    codes = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    scale, bias = torch.rand(n, 1) * 0.02 + 1e-3, torch.randn(n)
    return x.to(dtype).to(device), codes.to(device), scale.to(dtype).to(device), bias.to(dtype).to(device)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bits of equal shapes; NaN is NaN."""
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("static", [None, 0.05])
@pytest.mark.parametrize(
    ("m", "n", "k", "config"),
    [
        (1, 64, 128, SMALL),
        (7, 70, 200, Config(16, 64, 2)),
        (17, 33, 37, Config(16, 128, 3)),
        (65, 70, 384, Config(64, 64, 4, 8)),
        (40, 1, 1, Config(32, 64)),
    ],
)
def test_w8a8_has_the_bits_of_the_reference(
    device: str, dtype: torch.dtype, static: float | None, m: int, n: int, k: int, config: Config
) -> None:
    """Rows, outputs and inputs that fill no block; one scale for all rows, or one for each."""
    x, codes, scale, bias = w8a8_case(m, n, k, dtype, device)
    given = None if static is None else torch.tensor([static], dtype=dtype, device=device)
    for added in (None, bias):
        out = launch_a8.linear_w8a8(x, codes, scale, added, given, config=config)
        assert same(out, linear_reference(x, codes, scale, added, given))


def test_w8a8_adds_up_exactly(device: str) -> None:
    """Sums that float32 could not hold, in parts that int32 can; the scales are those of another dtype than x."""
    x = torch.full((2, 2100), 1.0, dtype=torch.float16, device=device)
    x[1, ::2] = -1
    codes = torch.full((64, 2100), -128, dtype=torch.int8, device=device)
    codes[:, 1] = 127
    scale = torch.full((64, 1), 2.0**-24, device=device)
    for split in (1, 4):
        out = launch_a8.linear_w8a8(x, codes, scale, config=Config(16, 64, split))
        assert torch.equal(out, linear_reference(x, codes, scale))


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64), (64,), (2, 3, 64)])
def test_w8a8_shapes(device: str, shape: tuple[int, ...]) -> None:
    """Any leading dimensions, none, empty ones; no outputs; x and the weight need not be contiguous."""
    x, codes = (
        torch.randn(*shape, device=device),
        torch.randint(-128, 128, (64, 40), dtype=torch.int8, device=device).t(),
    )
    scale = torch.rand(40, 1, device=device)
    if len(shape) == 3:
        x = x.transpose(0, 1)
    for n in (40, 0):
        out = launch_a8.linear_w8a8(x, codes[:n], scale[:n])
        assert out.shape == (*x.shape[:-1], n)
        assert same(out, linear_reference(x, codes[:n], scale[:n]).view(out.shape))


def test_the_op_runs_the_kernel(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, and on the CPU where it is interpreted; the reference elsewhere, and for x of another dtype."""
    ran: list[torch.dtype] = []
    run = launch_a8.linear_w8a8
    monkeypatch.setattr(launch_a8, "linear_w8a8", lambda x, *rest: ran.append(x.dtype) or run(x, *rest))
    x, codes, scale, bias = w8a8_case(3, 40, 64, torch.float32, device)
    wanted = linear_reference(x, codes, scale, bias)
    assert same(OP(x, codes, scale, bias), wanted)
    assert ran == [torch.float32]
    fallback.forget_fallbacks()
    assert same(OP(x.double(), codes, scale, bias.double()), linear_reference(x.double(), codes, scale, bias.double()))
    assert fallback.fallbacks() == {"linear_w8a8 runs its reference: x of torch.float64": 1}
    monkeypatch.setenv("LLMQUANT_GPU_KERNELS", "reference")
    assert same(OP(x, codes, scale, bias), wanted)
    assert ran == [torch.float32]


def test_the_op_under_torch_compile_and_with_gradients(device: str) -> None:
    codes, scale = torch.randint(-128, 128, (40, 64), dtype=torch.int8, device=device), torch.rand(40, 1, device=device)
    x, bias = (torch.randn(*shape, device=device, requires_grad=True) for shape in ((2, 64), (40,)))
    arguments = (x, codes, scale, bias, torch.tensor([0.05], device=device))
    torch.library.opcheck(OP, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
    OP(*arguments).sum().backward()
    torch.testing.assert_close(x.grad, (codes * scale).sum(0).expand_as(x), rtol=1e-5, atol=1e-3)
    compiled = torch.compile(OP, fullgraph=True, backend="aot_eager")(*arguments)
    assert torch.equal(compiled, linear_reference(*arguments))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.zeros(40, 63, dtype=torch.int8)}, r"x is \[\.\.\., 63\]"),
        ({"scale": torch.ones(40, 1, device="meta")}, "but the scale on meta"),
        ({"input_scale": torch.ones(1, device="meta")}, "but the input_scale on meta"),
    ],
)
def test_mistakes_are_named(device: str, change: dict, words: str) -> None:
    """Shapes and devices: before anything is read that is not there."""
    x, codes, scale, bias = w8a8_case(3, 40, 64, torch.float32, device)
    arguments = {"x": x, "weight": codes, "scale": scale, "bias": bias} | change
    with pytest.raises(RuntimeError, match=words):
        ops.linear_w8a8(**arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 3, 16, 64, 129, 1024])
@pytest.mark.parametrize("dtype", GPU_FLOATS)
@pytest.mark.parametrize(
    "scheme", ["int4-g32", "int4-g32-asym", "int4-g64-asym", "int4-g128", "int4-g128-asym", "int4-asym"]
)
def test_w4a8_on_a_gpu(make: Callable, device: str, scheme: str, dtype: torch.dtype, m: int) -> None:
    """What dispatch chooses, with outliers; twice the same bits."""
    one = make(scheme, 1100, 2048, torch.bfloat16)
    x = torch.randn(m, one.k, dtype=dtype, device=device)
    x[:, ::97] *= 30
    (out,) = launch_a8.linear_w4a8(x, product(one), out_dtype=torch.float32)
    assert error(out, one.quantized(x.cpu()).to(device) @ one.exact.T) < BOUND
    (again,) = launch_a8.linear_w4a8(x, product(one), out_dtype=torch.float32)
    assert again.equal(out)


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 3, 16, 64, 129, 1024])
@pytest.mark.parametrize("dtype", GPU_FLOATS)
@pytest.mark.parametrize(("n", "k"), [(1100, 2048), (512, 1000), (130, 333)])
def test_w8a8_on_a_gpu(device: str, dtype: torch.dtype, m: int, n: int, k: int) -> None:
    """The reference's bits, in whatever configuration dispatch chooses."""
    x, codes, scale, bias = w8a8_case(m, n, k, dtype, device)
    for given in (None, torch.tensor([0.05], dtype=dtype, device=device)):
        assert same(OP(x, codes, scale, bias, given), linear_reference(x, codes, scale, bias, given))
