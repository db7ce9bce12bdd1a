"""`llmquant.hf.load.load`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmquant.engine.output import JOURNAL
from llmquant.errors import CheckpointError
from llmquant.hf.load import load
from llmquant.layers.accuracy import kernels_used
from tests.hf.conftest import logits, schemes_in_blocks, write_packed

# Compared bit for bit with dense layers.
pytestmark = pytest.mark.usefixtures("reference_kernels")

Folder = Callable[[str], Path]


def test_packed_dense_and_unquantized(dense_folder: Folder, tmp_path: Path) -> None:
    dense = dense_folder("llama")
    fake = write_packed(
        dense, tmp_path / "q", schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32")
    )
    packed, plain, unquantized = load(tmp_path / "q"), load(tmp_path / "q", packed=False), load(str(dense))
    assert packed.dtype == torch.bfloat16
    assert sum(kernels_used(packed).values()) == 14
    assert not kernels_used(plain)
    assert torch.equal(logits(packed), logits(fake))
    assert torch.equal(logits(plain), logits(fake))
    assert not kernels_used(unquantized)


def test_folder_that_is_not_there_or_not_safe(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="loading a pickle can run any code"):
        load(str(tmp_path))


def test_unfinished_run(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / JOURNAL).write_text("{}\n")
    for source in (tmp_path / "out", partial):
        with pytest.raises(CheckpointError, match="unfinished run; continue it with llmquant quantize --resume"):
            load(source)
