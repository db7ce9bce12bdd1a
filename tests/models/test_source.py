"""Sources of weights: disk, memory, and either with edits, which must agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmquant.errors import QuantizationError
from llmquant.models.checkpoint import Checkpoint
from llmquant.models.edits import Edit, apply_edits, untie
from llmquant.models.source import Edited, Loaded, WeightSource
from tests.architectures.tiny import tiny_model

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def contents(source: WeightSource) -> dict[str, Tensor]:
    found = {}
    for key, info in source.tensors.items():
        found[key] = source.read(key)
        assert (found[key].dtype, tuple(found[key].shape)) == (info.dtype, tuple(info.shape))
    return found


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_memory_and_disk_hold_the_same(folder: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    assert_equal(contents(Loaded(model)), contents(Checkpoint.open(folder)))


def test_an_edited_checkpoint_reads_as_the_edited_model(folder: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    checkpoint = Checkpoint.open(folder)
    early = [
        Edit("scale_out", UP, torch.rand(128) + 0.5),
        Edit("scale_in", "model.embed_tokens.weight", torch.rand(64)),
    ]
    late = [
        *untie("lm_head.weight", "model.embed_tokens.weight"),
        Edit("scale_in", "lm_head.weight", torch.rand(64)),
        Edit("scale_out", UP, torch.rand(128) + 0.5),
        Edit("set", "model.layers.0.mlp.up_proj.bias", torch.rand(128)),
    ]
    source = Edited(checkpoint, early)
    assert "lm_head.weight" not in source.tensors
    source.extend(late)
    apply_edits(model, early + late)
    model.config.tie_word_embeddings = False
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found = contents(source)
    assert_equal(found, expected)
    assert found["model.layers.0.mlp.up_proj.bias"].dtype == torch.bfloat16
    assert source.edits == early + late


def test_without_edits_a_source_is_itself(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    source = Edited(checkpoint, [Edit("config", UP, value=1)])
    assert_equal(contents(source), contents(checkpoint))


def test_keys_need_not_be_the_names_of_parameters() -> None:
    model = tiny_model("llama")
    names = {f"old.{name}": name for name, _ in model.named_parameters()}

    class Renamed(Loaded):
        def __init__(self) -> None:
            super().__init__(model)
            self.tensors = {key: self.tensors[name] for key, name in names.items()}

        def read(self, name: str, /) -> Tensor:
            return model.get_parameter(names[name]).detach()

    by = torch.rand(128)
    source = Edited(Renamed(), [Edit("scale_out", UP, by), Edit("untie", "copy.weight", value=UP)], names=names)
    expected = (model.get_parameter(UP).double() * by.double()[:, None]).bfloat16()
    assert torch.equal(source.read(f"old.{UP}"), expected)
    assert torch.equal(source.read("copy.weight"), expected)
    with pytest.raises(QuantizationError, match=f"{UP}: .* cannot hold"):
        Edited(Renamed(), [Edit("scale_out", UP, by * 1e300), Edit("scale_out", UP, by)], names=names).read(f"old.{UP}")
