"""The C++ library: every instruction set gives the bits of the torch reference; the choice of one; its absence."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from llmquant.errors import LlmquantError
from llmquant.kernels.cpu import native
from llmquant.kernels.ops.dequantize import dequantize, dequantize_reference

needs_library = pytest.mark.skipif(native.library() is None, reason="llmquant is installed without its C++ kernels")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def _fresh_choice() -> Iterator[None]:
    """Let `isa` and `library` decide anew in the test and after it."""
    native.isa.cache_clear()
    native.library.cache_clear()
    yield
    native.isa.cache_clear()
    native.library.cache_clear()


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@needs_library
@pytest.mark.parametrize("instructions", native.ISAS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("out_features", "in_features", "group"), [(5, 7, 7), (7, 40, 8), (33, 129, 43), (3, 96, 48)])
def test_equals_reference(make_packed: Callable, instructions, bits, out_features, in_features, group) -> None:
    if instructions not in native.supported():
        pytest.skip(f"this machine cannot run {instructions}")
    for suffix in ("", "-asym"):
        for scale_dtype in FLOATS:
            p = make_packed(f"int{bits}-g{group}{suffix}", out_features, in_features, scale_dtype)
            for dtype in FLOATS:
                wanted = dequantize_reference(p.packed, p.scale, p.zero, bits, in_features, dtype)
                got = native.unpack_rows(
                    p.packed,
                    p.scales,
                    p.zeros,
                    bits=bits,
                    in_features=in_features,
                    dtype=dtype,
                    instructions=instructions,
                )
                assert same_bits(got, wanted)


@needs_library
@pytest.mark.parametrize("instructions", native.ISAS)
@pytest.mark.parametrize("scale_dtype", FLOATS)
def test_rounds_like_torch_at_the_edges(instructions, scale_dtype) -> None:
    if instructions not in native.supported():
        pytest.skip(f"this machine cannot run {instructions}")
    # Every 16-bit pattern as a scale: infinities, subnormals, zeros of both signs, ties; NaN stays NaN.
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    scales = patterns.view(scale_dtype if scale_dtype != torch.float32 else torch.bfloat16).to(scale_dtype)
    # In float32, low bits too, so that casting the result has something to round.
    if scale_dtype == torch.float32:
        scales = scales * (1 + 2.0**-12)
    packed = torch.randint(-(1 << 31), (1 << 31) - 1, (len(scales), 2), dtype=torch.int32)
    for dtype in FLOATS:
        wanted = dequantize_reference(packed, scales[:, None], None, 4, 16, dtype)
        got = native.unpack_rows(
            packed, scales[:, None], None, bits=4, in_features=16, dtype=dtype, instructions=instructions
        )
        number = ~wanted.isnan()
        assert torch.equal(got.isnan(), wanted.isnan())
        assert same_bits(got[number], wanted[number])


@needs_library
def test_threads_do_not_change_the_result(make_packed: Callable) -> None:
    p = make_packed("int4-g32-asym", 1500, 256, torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        got = native.unpack_rows(p.packed, p.scales, p.zeros, bits=4, in_features=256, dtype=torch.bfloat16)
    finally:
        torch.set_num_threads(before)
    assert same_bits(got, dequantize_reference(p.packed, p.scale, p.zero, 4, 256, torch.bfloat16))


@needs_library
def test_strided_and_empty_tensors(make_packed: Callable) -> None:
    p = make_packed("int4-g8", 6, 16)
    wanted = dequantize_reference(p.packed, p.scale, None, 4, 16, torch.float32)
    strided = native.unpack_rows(
        p.packed.t().contiguous().t(),
        p.scales.t().contiguous().t(),
        None,
        bits=4,
        in_features=16,
        dtype=torch.float32,
    )
    assert same_bits(strided, wanted)
    empty = native.unpack_rows(p.packed[:0], p.scales[:0], None, bits=4, in_features=16, dtype=torch.float32)
    assert empty.shape == (0, 16)


@needs_library
def test_refuses_what_does_not_fit(make_packed: Callable) -> None:
    p = make_packed("int4-g8-asym", 6, 16)
    arguments = {"bits": 4, "in_features": 16, "dtype": torch.float32}
    for packed, scales, zeros, change in [
        (p.packed, p.scales, p.zeros, {"bits": 5}),
        (p.packed, p.scales, p.zeros, {"in_features": 24}),
        (p.packed, p.scales, p.zeros, {"dtype": torch.float64}),
        (p.packed.long(), p.scales, p.zeros, {}),
        (p.packed, p.scales.double(), p.zeros, {}),
        (p.packed, p.scales[:3], p.zeros[:3], {}),
        (p.packed, p.scales, p.zeros[:3], {}),
        (p.packed, p.scales, p.zeros.int(), {}),
    ]:
        with pytest.raises(ValueError, match="cannot unpack"):
            native.unpack_rows(packed, scales, zeros, **(arguments | change))
    with pytest.raises(LlmquantError, match="scalar, avx2, avx512"):
        native.unpack_rows(p.packed, p.scales, p.zeros, instructions="mmx", **arguments)


@needs_library
@pytest.mark.usefixtures("_fresh_choice")
@pytest.mark.parametrize("wanted", native.ISAS)
def test_environment_chooses(monkeypatch: pytest.MonkeyPatch, wanted) -> None:
    monkeypatch.setenv("LLMQUANT_CPU_ISA", wanted)
    if wanted in native.supported():
        assert native.isa() == wanted
    else:
        with pytest.raises(LlmquantError, match=f"asks for {wanted}, but this machine runs"):
            native.isa()


@needs_library
@pytest.mark.usefixtures("_fresh_choice")
def test_widest_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMQUANT_CPU_ISA", raising=False)
    assert native.supported()[0] == "scalar"
    assert native.isa() == native.supported()[-1]


@pytest.mark.usefixtures("_fresh_choice")
def test_environment_with_a_bad_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMQUANT_CPU_ISA", "avx1024")
    with pytest.raises(LlmquantError, match="'avx1024'; it can be scalar, avx2, avx512"):
        native.isa()


@pytest.mark.usefixtures("_fresh_choice")
def test_without_the_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, make_packed: Callable
) -> None:
    monkeypatch.setattr(native, "files", lambda package: tmp_path)
    monkeypatch.delenv("LLMQUANT_CPU_ISA", raising=False)
    p = make_packed("int4-g8-asym", 6, 16)
    with caplog.at_level(logging.WARNING):
        got = dequantize(p.packed, p.scale, p.zero, 4, 16, torch.float32)
        dequantize(p.packed, p.scale, p.zero, 4, 16, torch.float32)
    assert same_bits(got, dequantize_reference(p.packed, p.scale, p.zero, 4, 16, torch.float32))
    assert [record.message for record in caplog.records if "without its C++ kernels" in record.message] == [
        caplog.records[0].message
    ]
    assert native.isa() == "torch"
    assert native.supported() == ()
    with pytest.raises(LlmquantError, match="not installed"):
        native.unpack_rows(p.packed, p.scales, p.zeros, bits=4, in_features=16, dtype=torch.float32)
    native.isa.cache_clear()
    monkeypatch.setenv("LLMQUANT_CPU_ISA", "scalar")
    with pytest.raises(LlmquantError, match="installed without"):
        native.isa()


def test_absence_is_seen_on_the_terminal(tmp_path: Path) -> None:
    """The message reaches standard error of a program that has not set up logging."""
    code = (
        "import pathlib, sys; from llmquant.kernels.cpu import native; "
        "native.files = lambda package: pathlib.Path(sys.argv[1]); native.library(); native.library()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr.count("without its C++ kernels") == 1


@needs_library
@pytest.mark.usefixtures("_fresh_choice")
def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    with pytest.raises(LlmquantError, match="install llmquant again"):
        native.library()
