"""What a checkpoint may hold for the parameters of a model: one tensor each, with numbers that mean what they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmquant import RecipeConfig, load, quantize
from llmquant.compat.loading import map_keys, same_kind
from llmquant.errors import CheckpointError
from tests.architectures.examine import RTN
from tests.architectures.tiny import tiny_model

UP, NORM, EMBEDDING = "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"
Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    tiny_model("llama").save_pretrained(folder)
    return folder


def changed(source: Path, folder: Path, change: Change) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def refusals(folder: Path, message: str, *, dense: bool = True) -> None:
    """Quantizing, loading as it is, and quantizing while loading end in an error with `message`, before any work."""
    out = folder.with_name("out")
    with pytest.raises(CheckpointError, match=message):
        quantize(folder, RTN, out)
    assert not out.with_name("out.partial").exists()
    if dense:
        with pytest.raises(CheckpointError, match=message):
            load(folder)
    with pytest.raises(CheckpointError, match=message):
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto", quantization_config=RecipeConfig(RTN))


@pytest.mark.parametrize("name", [UP, NORM, EMBEDDING])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool])
def test_weights_are_floats_of_16_bits_or_more(source: Path, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    folder = changed(source, tmp_path / "source", lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    refusals(folder, f"{name} (holds|is) {str(dtype).removeprefix('torch.')}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_other_wide_floats_are_right(source: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    names = (UP, NORM)
    folder = changed(source, tmp_path / "source", lambda t: t.update({name: t[name].to(dtype) for name in names}))
    load(quantize(folder, RTN, tmp_path / "out").folder)


def test_kinds() -> None:
    assert same_kind(torch.float16, torch.float32)
    assert same_kind(torch.int32, torch.int64)
    assert same_kind(torch.uint8, torch.bool)
    assert not same_kind(torch.float32, torch.int64)
    assert not same_kind(torch.int64, torch.float32)
    assert not same_kind(torch.float8_e5m2, torch.bfloat16)
    assert not same_kind(torch.complex64, torch.float32)


@pytest.mark.parametrize("name", [UP, NORM])
def test_two_tensors_for_one_parameter(source: Path, tmp_path: Path, name: str) -> None:
    other = name.removeprefix("model.")
    folder = changed(source, tmp_path / "source", lambda tensors: tensors.update({other: tensors[name] * 2}))
    refusals(folder, f"the checkpoint holds {name} twice, as ({other} and as {name}|{name} and as {other});")


def test_two_packed_weights_for_one_layer(source: Path, tmp_path: Path) -> None:
    out = quantize(source, RTN, tmp_path / "out").folder
    index = json.loads((out / "model.safetensors.index.json").read_text())
    base = UP.removesuffix(".weight")
    file = index["weight_map"][f"{base}.weight_packed"]
    tensors = load_file(out / file)
    more = {key.removeprefix("model."): tensors[key].clone() for key in tensors if key.startswith(base)}
    save_file({**tensors, **more}, out / file, metadata={"format": "pt"})
    index["weight_map"] |= dict.fromkeys(more, file)
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    for action in (load, lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype="auto")):
        with pytest.raises(CheckpointError, match=r"holds .*up_proj.weight twice"):
            action(out)


def test_parts_that_are_merged_are_several_tensors_for_one_parameter() -> None:
    model = tiny_model("mixtral")
    keys = [f"model.layers.0.mlp.experts.{i}.w{j}.weight" for i in range(4) for j in (1, 2, 3)]
    old = [key.replace("mlp", "block_sparse_moe") for key in keys]
    assert map_keys(model, old).merged == set(old)
    merged = "model.layers.0.mlp.experts.down_proj"
    with pytest.raises(CheckpointError, match=f"{merged} twice"):
        map_keys(model, [*old, merged])
    with pytest.raises(CheckpointError, match=f"{merged} twice"):
        map_keys(model, [merged, *old])


@pytest.mark.parametrize("suffix", ["scale", "packed", "shape"])
def test_weights_beside_their_own_scales_are_quantized_already(source: Path, tmp_path: Path, suffix: str) -> None:
    name = f"{UP}_{suffix}"
    folder = changed(source, tmp_path / "source", lambda tensors: tensors.update({name: torch.ones(128, 1)}))
    refusals(folder, f"holds {name} beside {UP}", dense=False)


@pytest.mark.parametrize("name", [NORM, EMBEDDING, UP])
def test_missing_tensors(source: Path, tmp_path: Path, name: str) -> None:
    folder = changed(source, tmp_path / "source", lambda tensors: tensors.__delitem__(name))
    refusals(folder, f"(no tensor for|lacks) {name}")


@pytest.mark.parametrize("name", [NORM, EMBEDDING, UP])
def test_wrong_shapes(source: Path, tmp_path: Path, name: str) -> None:
    folder = changed(source, tmp_path / "source", lambda t: t.update({name: t[name].new_ones(3, *t[name].shape)}))
    refusals(folder, f"{name} (has shape|is)")
