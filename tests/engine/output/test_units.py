"""How the tensors of a checkpoint are dealt to shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmquant.api import quantize
from llmquant.errors import CheckpointError
from llmquant.models.checkpoint import Checkpoint
from tests.architectures.tiny import tiny_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model that has its tied weight twice, as older versions of transformers wrote it."""
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "source")
    change(tmp_path / "source", lambda weight: weight.clone())
    return tmp_path / "source"


def change(source: Path, head: Callable[[Tensor], Tensor]) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = head(tensors["model.embed_tokens.weight"])
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})


def test_the_copy_of_a_tied_weight_goes_where_its_owner_is_quantized(source: Path, tmp_path: Path) -> None:
    for name, kept in (("int8-full", False), ("int8", True)):
        out = quantize(source, name, tmp_path / name).folder
        assert ("lm_head.weight" in Checkpoint.open(out, allow_quantized=True).tensors) == kept


def test_a_copy_that_differs_is_refused(source: Path, tmp_path: Path) -> None:
    change(source, lambda weight: weight * 2)
    with pytest.raises(CheckpointError, match=r"differs from .* though config.json ties them"):
        quantize(source, "int8-full", tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
