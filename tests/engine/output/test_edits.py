"""Transforms and tuning inside a run: written as meant, the same in memory, the same after an interruption."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import llmquant
from llmquant.algorithms.transforms import smoothquant
from llmquant.api import quantize
from llmquant.engine.output import edits as edits_module
from llmquant.engine.output import sink as sink_module
from llmquant.engine.output.folder import EDITS
from llmquant.engine.prepare import prepare
from llmquant.engine.weights import Work
from llmquant.errors import OutputError, QuantizationError
from llmquant.formats.compressed_tensors import files as shards
from llmquant.models.edits import Edit
from llmquant.recipe.load import load_recipe
from tests.engine.conftest import tiny_llama


@pytest.fixture(scope="module")
def recipe(text_file: Path) -> dict[str, Any]:
    """W8A8 behind SmoothQuant, without GPTQ."""
    return {
        "version": 1, "name": "smooth", "rules": [{"match": "linear", "scheme": "int8"}],
        "transforms": [{"method": "smoothquant", "alpha": 0.5}],
        "calibration": {"dataset": str(text_file), "samples": 64, "length": 48},
    }  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def test_a_transform_is_written(checkpoint: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    folder = quantize(checkpoint, recipe, tmp_path / "out").folder
    assert not (folder / EDITS).exists()
    norm = "model.layers.1.post_attention_layernorm.weight"
    before, after = weights(checkpoint), weights(folder)
    assert not torch.equal(after[norm], before[norm])
    torch.testing.assert_close(after[norm].log2(), after[norm].log2().round())  # of ones: powers of two
    assert torch.equal(after["model.norm.weight"], before["model.norm.weight"])
    ids = torch.randint(1, 250, (2, 40))
    quantized, dense = llmquant.load(folder), AutoModelForCausalLM.from_pretrained(checkpoint)
    torch.testing.assert_close(quantized(ids).logits, dense(ids).logits, atol=0.05, rtol=0.1)


def test_what_stays_keeps_its_dtype_and_shape(checkpoint: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    """A float32 norm of a bfloat16 model stays float32 behind a transform, and tensors keep their shapes."""
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    norm = "model.layers.1.input_layernorm.weight"
    for file in source.glob("*.safetensors"):
        tensors = load_file(file)
        if norm in tensors:
            tensors[norm] = tensors[norm].float()
            save_file(tensors, file, {"format": "pt"})
    after, before = weights(quantize(source, recipe, tmp_path / "out").folder), weights(source)
    kept = {name for name in after if name in before and after[name].dtype != torch.int8}
    assert norm in kept
    assert not torch.equal(after[norm], before[norm])
    assert {name: (after[name].dtype, after[name].shape) for name in kept} == {
        name: (before[name].dtype, before[name].shape) for name in kept
    }


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.bias", "lm_head.bias"])
def test_a_tensor_that_a_transform_creates_is_not_lost(
    checkpoint: Path, recipe: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, rows = smoothquant.fit, 257 if name.startswith("lm_head") else 96
    created = Edit("set", name, torch.ones(rows))
    monkeypatch.setattr(smoothquant, "fit", lambda *args: [*fit(*args), created])
    with pytest.raises(QuantizationError, match=f"{name}: a transform creates this tensor"):
        quantize(checkpoint, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_in_memory_as_on_disk(checkpoint: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipe | {"tuning": [{"method": "scale_refit", "steps": 4}], "rounding": {"method": "gptq"}}
    folder = quantize(checkpoint, recipe, tmp_path / "out").folder
    config = llmquant.RecipeConfig(recipe, device="cpu")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=config)
    model.save_pretrained(tmp_path / "saved")
    saved, written = weights(tmp_path / "saved"), weights(folder)
    assert saved.keys() == written.keys()
    assert [name for name in saved if not torch.equal(saved[name], written[name])] == []


class Stop(Exception):
    pass


@pytest.mark.parametrize("shard", [1, 2, 3])
def test_resumed(checkpoint: Path, recipe: dict[str, Any], tmp_path: Path, monkeypatch, shard: int) -> None:
    recipe = recipe | {"tuning": [{"method": "scale_refit", "steps": 2}]}
    whole = quantize(checkpoint, recipe, tmp_path / "whole").folder
    written, original = [], shards.write_shard

    def stopping(path: Path, tensors: Any) -> Any:
        if len(written) == shard:
            raise Stop
        written.append(path)
        return original(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", stopping)
        with pytest.raises(Stop):
            quantize(checkpoint, recipe, tmp_path / "out")
    fitted, fit = [], smoothquant.fit
    monkeypatch.setattr(smoothquant, "fit", lambda *args: (fitted.append(args), fit(*args))[1])
    quantize(checkpoint, recipe, tmp_path / "out", resume=True)
    assert len(fitted) == 4 - shard  # finished blocks are replayed
    assert {name: t.tolist() for name, t in weights(tmp_path / "out").items()} == {
        name: t.tolist() for name, t in weights(whole).items()
    }


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_edits(checkpoint: Path, recipe: dict[str, Any], tmp_path: Path, monkeypatch, damage: str) -> None:
    original = shards.write_shard

    def stopping(path: Path, tensors: Any) -> Any:
        if "00003" in path.name:
            raise Stop
        return original(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", stopping)
        with pytest.raises(Stop):
            quantize(checkpoint, recipe, tmp_path / "out")
    (file, *_) = sorted((tmp_path / "out.partial" / EDITS).iterdir())
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    with pytest.raises(OutputError, match=f"{file.name}.*; start again with --overwrite"):
        quantize(checkpoint, recipe, tmp_path / "out", resume=True)
    quantize(checkpoint, recipe, tmp_path / "out", overwrite=True)


def test_verification_sees_a_transform_that_was_not_written(
    checkpoint: Path, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init, source = sink_module.FolderSink.__init__, prepare(checkpoint, load_recipe(recipe)).checkpoint

    def forgetful(self, folder, units, writer, plan, journal, _edited, progress) -> None:
        init(self, folder, units, writer, plan, journal, source, progress)

    monkeypatch.setattr(sink_module.FolderSink, "__init__", forgetful)
    with pytest.raises(OutputError, match=r"layernorm\.weight differs from the source"):
        quantize(checkpoint, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_edits_that_cannot_be_written(checkpoint, recipe, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OutputError(f"{path}: no space")

    monkeypatch.setattr(edits_module, "write_bytes_atomic", full)
    with pytest.raises(OutputError, match="no space"):
        quantize(checkpoint, recipe, tmp_path / "out")


def test_what_a_transform_leaves_alone_is_said(text_file: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    from llmquant.engine.drive import transform_notes

    model = tiny_llama()
    model.save_pretrained(tmp_path)
    prepared = prepare(tmp_path, load_recipe(recipe | {"calibration": None, "transforms": []}))
    smooth = load_recipe(recipe)
    plan = type(prepared.plan)(smooth, prepared.plan.inventory, prepared.plan.rows)
    work = prepared.work()
    told = Work(work.model, plan, work.source, work.names, work.converted)
    assert list(transform_notes(told)) == []
    for block in work.blocks:
        block.__class__ = type("UnheardOf", (type(block),), {})
    (note,) = transform_notes(told)
    assert "UnheardOf" in note
    assert note.endswith("(and so 2 more blocks)")
