"""Activations to codes: rows as the definition of W8A8 has them, blocks against a loop, in the order of the words."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch
from torch import Tensor

from llmquant.kernels.gpu import activations, weight
from llmquant.kernels.gpu.choose.config import Config
from llmquant.kernels.gpu.weight import Format
from llmquant.kernels.ops.linear_w8a8 import quantize_tokens
from llmquant.kernels.product import PackedWeight
from llmquant.numerics.pack import pack

FLOATS = [torch.float16, torch.float32]  # the interpreter rounds to bfloat16 wrongly
CONFIG = Config(16, 64)


def rows_of(m: int, k: int, dtype: torch.dtype, device: str) -> Tensor:
    """Rows of many magnitudes, with outliers; one of zeros, one too small to divide by, two that are not finite."""
    x = torch.randn(m, k) * torch.exp2(torch.randint(-10, 8, (m, 1)).float())
    x[:, 0] *= 30
    for row, (column, value) in enumerate(((0, 0.0), (0, 1e-37), (k - 1, nan), (k // 2, -inf))):
        x[row + 1 : row + 2] *= row > 1
        x[row + 1 : row + 2, column] = value
    return x.to(dtype).to(device)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal, NaN included."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("static", [None, 0.05, 0.0, -0.1, inf, nan])
@pytest.mark.parametrize(("m", "k"), [(1, 1), (6, 128), (9, 333)])
def test_rows_have_the_bits_of_the_definition(
    device: str, dtype: torch.dtype, static: float | None, m: int, k: int
) -> None:
    x = rows_of(m, k, dtype, device)
    scale = None if static is None else torch.tensor([static], dtype=dtype, device=device)
    codes, steps = activations.quantized_rows(x, scale, CONFIG)
    wanted, scales = quantize_tokens(x, scale)
    assert codes.shape == (16, -(-k // 128) * 128)
    assert torch.equal(codes[:m, :k].float(), wanted)
    assert not codes[:m, k:].any()
    assert same(steps[:m], scales[:, 0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [257, 512, 1000])
def test_rows_that_no_program_holds(device: str, dtype: torch.dtype, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_LONGEST", 256)
    monkeypatch.setattr(activations, "constants_rows", activations.constants_rows.__wrapped__)
    x = rows_of(6, k, dtype, device)
    codes, steps = activations.quantized_rows(x, None, CONFIG)
    wanted, scales = quantize_tokens(x)
    assert torch.equal(codes[:6, :k].float(), wanted)
    assert not codes[:6, k:].any()
    assert same(steps[:6], scales[:, 0])


def format_of(group: int, k: int, asymmetric: bool = True) -> Format:
    return Format(4, k, k // group, 0, False, asymmetric)


def stored_at(k: int) -> int:
    """Where code k is, by the fragments of the PTX ISA: the place of an operand whose byte holds the weight's code k.

    Word (q, s) has code k in its nibble h + 4 b. Registers are the low nibbles of its bytes, and the high ones; of an
    operand of 32 inputs lane q has 4 q .. 4 q + 3 in its first register and 16 + 4 q .. 16 + 4 q + 3 in the second.
    """
    for s in range(k // 32, k // 32 + 1):
        for h in range(4):
            for q in range(4):
                for b in range(2):
                    if k == 32 * s + 8 * h + 2 * q + b:
                        byte, half = divmod(h + 4 * b, 2)
                        return 32 * s + 16 * half + 4 * q + byte
    raise AssertionError


def test_the_order_is_that_of_the_words_of_a_weight(device: str) -> None:
    """Every code of a prepared weight, taken as an operand, meets the code of x that it belongs to."""
    codes = torch.randint(-8, 8, (64, 256), dtype=torch.int8)
    scale = torch.ones(64, 1)
    stored = PackedWeight(pack(codes, 4), scale, None, 4, 256)
    words = weight.views(weight.prepare(stored), Format.of(stored), 64)[0][0]  # (tiles_k, 64, q, s)
    x = torch.arange(256).remainder(128)[None].float()  # 127 is the largest: codes are x
    x[:, 128:] -= 127  # -127 .. 0
    found, steps, _ = activations.quantized_blocks(x.to(device), format_of(128, 256), CONFIG)
    assert torch.equal(steps[:, 0].cpu(), torch.full((2,), 1 / 16))
    for k in range(256):
        place = stored_at(k)
        assert found[0, place] == x[0, k]
        s, rest = divmod(place % 128, 32)
        half, rest = divmod(rest, 16)
        q, byte = divmod(rest, 4)
        operand = words[k // 128, :, q, s] >> (8 * byte + 4 * half) & 15
        assert torch.equal(operand, codes[:, k].int() & 15)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("size", "group", "m", "k"),
    [(32, 32, 1, 96), (32, 96, 17, 1440), (64, 64, 5, 320), (128, 128, 9, 384), (128, 256, 3, 512), (128, 37, 2, 37)],
)
def test_blocks_against_a_loop(device: str, dtype: torch.dtype, size: int, group: int, m: int, k: int) -> None:
    """A scale for 32, 64 or 128 inputs, whatever the groups of the weight are; the last one has whatever is left."""
    x = rows_of(m, k, dtype, device)
    codes, steps, sums = activations.quantized_blocks(x, format_of(group, k), CONFIG)
    tiles = -(-k // 128)
    assert codes.shape == (-(-m // 16) * 16, tiles * 128)
    assert steps.shape == sums.shape == (tiles * 128 // size, codes.shape[0])
    order = torch.tensor([stored_at(one) for one in range(tiles * 128)])
    natural = codes[:m].cpu()[:, order]
    for row in range(m):
        for block in range(tiles * 128 // size):
            values = x[row, block * size : (block + 1) * size].float().cpu()
            got = natural[row, block * size : (block + 1) * size]
            if not values.isfinite().all():
                assert steps[block, row].isnan()
                assert not got.any()
                continue
            largest = max([2.0**-112, *values.abs().tolist()])
            wanted = [round(value) for value in (values * (torch.tensor(127.0) / largest)).tolist()]
            assert got.tolist() == wanted + [0] * (size - len(wanted))
            assert float(steps[block, row]) == float(torch.tensor(largest) / 2032)
            assert int(sums[block, row]) == 16 * sum(wanted)


@pytest.mark.parametrize("m", [3, 20])
def test_rows_apart(device: str, m: int) -> None:
    """Rows of x that are columns of something wider; what is between them does not matter."""
    wide = torch.full((m, 700), nan, device=device)
    wide[:, :256] = torch.randn(m, 256)
    apart = activations.quantized_blocks(wide[:, :256], format_of(32, 256), CONFIG)
    dense = activations.quantized_blocks(wide[:, :256].contiguous(), format_of(32, 256), CONFIG)
    for a, b in zip(apart, dense, strict=True):
        assert torch.equal(
            a[..., :m] if a.dtype != torch.int8 else a[:m], b[..., :m] if b.dtype != torch.int8 else b[:m]
        )


@pytest.mark.gpu
@pytest.mark.parametrize("k", [4096, 11008, 40000])
def test_rows_on_a_gpu(device: str, k: int) -> None:
    """In bfloat16 too, where the interpreter fails; longer than a program holds."""
    for dtype in (*FLOATS, torch.bfloat16):
        for scale in (None, torch.tensor([0.03], dtype=dtype, device=device)):
            x = rows_of(300, k, dtype, device)
            codes, steps = activations.quantized_rows(x, scale, CONFIG)
            wanted, scales = quantize_tokens(x, scale)
            assert torch.equal(codes[:300, :k].float(), wanted)
            assert same(steps[:300], scales[:, 0])
