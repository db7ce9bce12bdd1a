"""The inline PTX of the kernels: every half-word of codes, every zero point, bit for bit, without a GPU or with one.

The interpreter cannot run assembly; ptx.py does. On a GPU the same tests run the real thing.
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.gpu import ptx

pytest.importorskip("triton", reason="triton is not installed: pip install 'llmquant[gpu]'")

import triton
import triton.language as tl

from llmquant.kernels.gpu.triton import codes, linear_a8

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
ROWS = 1024 if INTERPRETED else 64  # of words, in one program


@pytest.fixture(autouse=True)
def _assembly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the interpreter lacks: inline assembly, and whole numbers as bfloat16."""
    if not INTERPRETED:
        return
    from triton.runtime.interpreter import InterpreterBuilder

    def to_float(self: InterpreterBuilder, value: object, dtype: tl.dtype) -> object:
        if dtype.scalar == tl.bfloat16:
            return self.cast_impl(self.cast_impl(value, tl.float32), dtype)
        return self.cast_impl(value, dtype)

    monkeypatch.setattr(InterpreterBuilder, "create_inline_asm", ptx.inline_asm)
    monkeypatch.setattr(InterpreterBuilder, "create_si_to_fp", to_float)


@triton.jit
def _codes_of(
    words, zeros, out, PLACES: tl.constexpr, BITS: tl.constexpr, ASYMMETRIC: tl.constexpr, DTYPE: tl.constexpr,
    ASM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows of `codes.operand`: words (all, 4, PLACES) and zeros (all,) to out (all, 128 / BITS * PLACES)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    width: tl.constexpr = 128 // BITS * PLACES
    read = tl.load(words + rows[:, None] * (4 * PLACES) + tl.arange(0, 4 * PLACES)[None, :])
    values = codes.operand(tl.reshape(read, (ROWS, 4, PLACES)), tl.load(zeros + rows), BITS, ASYMMETRIC, DTYPE, ASM)
    tl.store(out + rows[:, None] * width + tl.arange(0, width)[None, :], values)


@triton.jit
def _nibbles_of(pairs, out, PLACES: tl.constexpr, ASM: tl.constexpr, ROWS: tl.constexpr):
    """Rows of `linear_a8.operand`: bytes (all, 16 * PLACES) to out (all, 32 * PLACES)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    read = tl.load(pairs + rows[:, None] * (16 * PLACES) + tl.arange(0, 16 * PLACES)[None, :])
    values = linear_a8.operand(tl.reshape(read, (ROWS, 4, PLACES, 4)), ASM)
    tl.store(out + rows[:, None] * (32 * PLACES) + tl.arange(0, 32 * PLACES)[None, :], values)


def half_words() -> Tensor:
    """Words (65536,) int32: every half-word as the lower and as the upper half, beside a random one."""
    every = torch.arange(1 << 16)
    return (every[torch.randperm(1 << 16)] << 16 | every).to(torch.int32)


def run(words: Tensor, zeros: Tensor, places: int, bits: int, asymmetric: bool, dtype: torch.dtype) -> Tensor:
    """Words (rows, 4, places) and zeros (rows,) as operands."""
    out = torch.empty(words.shape[0], 128 // bits * places, dtype=dtype, device=DEVICE)
    kernel: Any = _codes_of
    constants = {"PLACES": places, "BITS": bits, "ASYMMETRIC": asymmetric, "DTYPE": DTYPES[dtype], "ASM": True}
    kernel[(words.shape[0] // ROWS,)](words.to(DEVICE), zeros.to(DEVICE), out, **constants, ROWS=ROWS)
    return out.cpu()


def run_nibbles(words: Tensor, places: int) -> Tensor:
    """Words (rows, 4, places) as int8 operands."""
    out = torch.empty(words.shape[0], 32 * places, dtype=torch.int8, device=DEVICE)
    kernel: Any = _nibbles_of
    grid = (words.shape[0] // ROWS,)
    kernel[grid](words.contiguous().view(torch.int8).to(DEVICE), out, PLACES=places, ASM=True, ROWS=ROWS)
    return out.cpu()


def expected(words: Tensor, bits: int) -> Tensor:
    """Codes of words (rows, 4, places) by the docstring of weight.py: k = (128 / bits) s + 8 h + 2 q + b."""
    rows, _, places = words.shape
    out = torch.empty(rows, 128 // bits * places, dtype=torch.int32)
    for q in range(4):
        for s in range(places):
            for h in range(16 // bits):
                for b in range(2):
                    up = 32 - bits - bits * (h + 16 // bits * b)
                    out[:, 128 // bits * s + 8 * h + 2 * q + b] = (words[:, q, s] << up) >> (32 - bits)
    return out


def as_rows(words: Tensor, places: int) -> Tensor:
    return words.view(-1, 4, places)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("bits", "places"), [(4, 4), (4, 1), (8, 8), (8, 2)])
def test_symmetric_codes_are_exact(bits: int, places: int, dtype: torch.dtype) -> None:
    words = as_rows(half_words(), places)
    got = run(words, torch.full((words.shape[0],), 3, dtype=torch.int32), places, bits, False, dtype)
    assert torch.equal(got, expected(words, bits).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", range(16))
def test_4_bit_codes_less_their_zeros_are_exact(shift: int, dtype: torch.dtype) -> None:
    words = as_rows(half_words(), 4)
    zeros = (torch.arange(words.shape[0], dtype=torch.int32) + shift) % 16 - 8  # in turn: every row has every zero once
    got = run(words, zeros, 4, 4, True, dtype)
    assert torch.equal(got, (expected(words, 4) - zeros[:, None]).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("zero", [-128, -127, -1, 0, 1, 126, 127])
def test_8_bit_codes_less_their_zeros_are_exact(zero: int, dtype: torch.dtype) -> None:
    words = as_rows(half_words(), 8)
    zeros = torch.full((words.shape[0],), zero, dtype=torch.int32)
    got = run(words, zeros, 8, 8, True, dtype)
    assert torch.equal(got, (expected(words, 8) - zeros[:, None]).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_8_bit_zero(dtype: torch.dtype) -> None:
    every = torch.arange(256)
    words = as_rows((every << 24 | every.flip(0) << 16 | every << 8 | every.flip(0)).to(torch.int32).repeat(1024), 8)
    zeros = torch.arange(words.shape[0], dtype=torch.int32) // 32 - 128  # 32 rows hold every byte
    got = run(words, zeros, 8, 8, True, dtype)
    assert torch.equal(got, (expected(words, 8) - zeros[:, None]).to(dtype))


@pytest.mark.parametrize("places", [4, 2, 1])
def test_codes_for_8_bit_activations_are_exact(places: int) -> None:
    """16 times the code, in the order of quantize.py: code k at 32 s + 16 p + 4 q + j, h = 2 (j % 2) + p, b = j / 2."""
    words = as_rows(half_words(), places)
    natural = expected(words, 4).view(-1, places, 2, 2, 4, 2)  # (row, s, h / 2, h % 2, q, b)
    stored = natural.permute(0, 1, 3, 4, 5, 2)  # (row, s, p, q, b, h / 2)
    assert torch.equal(run_nibbles(words, places), (16 * stored).reshape(-1, 32 * places).to(torch.int8))


@pytest.mark.skipif(not INTERPRETED, reason="the assembly is emulated only in the interpreter")
@pytest.mark.parametrize(("bits", "asymmetric", "dtype"), [
    (4, True, torch.bfloat16), (4, True, torch.float16), (8, False, torch.bfloat16), (8, True, torch.bfloat16),
    (8, True, torch.float16), (4, False, None),
])  # fmt: skip
def test_no_number_in_the_assembly_can_be_another(
    bits: int, asymmetric: bool, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tests above would say of a wrong shift, mask, exponent or lookup table: that they can fail."""
    calls: list[tuple[str, str, list[ptx.Words]]] = []

    def spy(asm: str, constraints: str, inputs: list[ptx.Words]) -> list[ptx.Words]:
        calls.append((asm, constraints, inputs))
        return plain(asm, constraints, inputs)

    plain = ptx.run
    monkeypatch.setattr(ptx, "run", spy)
    words = as_rows(half_words()[: 4 * bits * ROWS], bits)
    if dtype is None:
        run_nibbles(words, bits)
    else:
        run(words, torch.arange(ROWS, dtype=torch.int32) % 16 - 8, bits, bits, asymmetric, dtype)
    ((asm, constraints, inputs),) = calls
    right = np.stack(plain(asm, constraints, inputs))
    numbers = list(re.finditer(r"(?<![$\w.])(0x[0-9a-f]+|\d+)\b", asm))
    assert len(numbers) >= 3
    for number in numbers:
        wrong = asm[: number.start()] + hex(int(number[0], 0) ^ 1) + asm[number.end() :]
        try:
            got = np.stack(plain(wrong, constraints, inputs))
        except ptx.AsmError:
            continue
        assert not np.array_equal(got, right), f"{number[0]} at {number.start()} of {asm}"


def test_lookup_tables_are_those_of_the_isa() -> None:
    """The PTX ISA, lop3: the table of f is f(0xf0, 0xcc, 0xaa)."""
    a, b, c = (torch.randint(0, 1 << 32, (1000,)).numpy().astype(np.uint32) for _ in range(3))
    isa = [np.array([part], np.uint32) for part in (0xF0, 0xCC, 0xAA)]
    for table in range(256):
        assert ptx.lop3(isa[0], isa[1], isa[2], table) & 0xFF == table
    assert np.array_equal(ptx.lop3(a, b, c, 0xEA), (a & b) | c)
    assert np.array_equal(ptx.lop3(a, b, c, 0x6A), (a & b) ^ c)


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16x2"), (torch.float16, "f16x2")])
def test_fma_rounds_once_to_even(dtype: torch.dtype, name: str) -> None:
    """Against torch's rounding of the exact value; both halves, ties and subnormal numbers among them."""
    every = torch.arange(1 << 16).to(torch.int16).view(dtype)
    values = every[every.isfinite()].double()
    values = torch.cat((values, values * (1 + 2.0**-9), values * (1 + 3 * 2.0**-9), values * (1 + 2.0**-12)))
    with np.errstate(over="ignore"):
        got = ptx.rounded(values.numpy(), name)
    nearest = values.to(dtype)
    assert np.array_equal(got, nearest.view(torch.int16).numpy().view(np.uint16))
    one = np.array([0x3C00BC00 if name == "f16x2" else 0x3F80BF80], np.uint32)  # 1 above, -1 below
    assert ptx.fma(one, one, one, name) == 0x40000000  # 2 above, 0 below


@pytest.mark.parametrize(
    ("asm", "constraints"),
    [
        ("xyz.b32 $0, $1;", "=r,r"),
        ("mov.b32 $0, a;", "=r,r"),
        ("mov.b32 a, $1;", "=r,r"),
        ("mov.b32 $0, $1;", "=h,r"),
        ("mov.b32 $1, 0;", "=r,r"),
        ("mov.b32 $0, $1; or.b32 $0, $0, $1;", "=r,r"),
        (".reg .b16 a;", "=r,r"),
        ("mov.b32 $0, $1;", "=r,r,r"),
    ],
)
def test_wrong_assembly_is_refused(asm: str, constraints: str) -> None:
    with pytest.raises(ptx.AsmError):
        ptx.run(asm, constraints, [np.zeros(1, np.uint32)])
