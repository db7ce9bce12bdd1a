"""A file written by llama.cpp's own `gguf` package, by ../golden/make_gguf.py: we read it, and write the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmquant.formats.gguf.blocks import decode, encode
from llmquant.formats.gguf.file import Entry, make_header, read_header
from llmquant.formats.gguf.reference import decode_blocks
from llmquant.models.checkpoint import Checkpoint
from llmquant.spec import Scheme

FILE = next((Path(__file__).parents[1] / "golden").glob("gguf_*.gguf"))
METADATA, TENSORS = read_header(FILE)


def test_metadata() -> None:
    assert {
        "general.architecture": "llama",
        "llama.block_count": 3,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5, rel=1e-7),
        "tokenizer.ggml.model": "none",
    } == METADATA


@pytest.mark.parametrize(("name", "scheme"), [("q4", Scheme.parse("int4-g32")), ("q8", Scheme.parse("int8-g32"))])
def test_blocks(name: str, scheme: Scheme) -> None:
    source = Checkpoint(FILE.parent, TENSORS)
    stored, dense = source.read(f"{name}.weight"), source.read(f"{name}.dense")
    quantized = decode(name, stored, scheme)
    assert torch.equal(quantized.dequantize(torch.float32), dense)
    assert torch.equal(decode_blocks(name, stored, scheme.bits).dequantize(torch.float32), dense)
    assert torch.equal(encode(name, quantized, scheme), stored)


def test_header() -> None:
    """The same metadata and tensors give the same bytes up to the data."""
    float32, half = torch.float32, torch.float16
    raw, size = make_header(
        METADATA,
        [
            Entry("q4.weight", (6, 96), Scheme.parse("int4-g32")),
            Entry("q4.dense", (6, 96), float32),
            Entry("q8.weight", (6, 96), Scheme.parse("int8-g32")),
            Entry("q8.dense", (6, 96), float32),
            Entry("norm.weight", (7,), float32),
            Entry("half.weight", (2, 5), half),
        ],
    )
    written = FILE.read_bytes()
    assert written[: len(raw)] == raw
    assert len(written) == size
