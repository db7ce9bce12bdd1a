"""Loading with a recipe gives the folder that the streaming engine writes, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from llmquant.engine.prepare import prepare
from llmquant.engine.run import run
from llmquant.errors import CheckpointError, DataError, PlanError
from llmquant.hf.recipe import RecipeConfig
from llmquant.recipe.load import load_recipe
from tests.hf.conftest import logits

Folder = Callable[[str], Path]
RULES = [{"match": "linear", "scheme": "int4-g32"}, {"match": "mlp.down", "scheme": "int8"}]


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"?": 0, **{f"w{i}": i for i in range(1, 96)}}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")


@pytest.fixture
def recipe(tmp_path: Path) -> dict:
    text = " ".join(f"w{i * i % 89 + 1}" for i in range(900))
    (tmp_path / "text.txt").write_text(text)
    calibration = {"dataset": str(tmp_path / "text.txt"), "samples": 8, "length": 32}
    return {"version": 1, "rules": RULES, "rounding": {"method": "gptq"}, "calibration": calibration}


def assert_same_folder(one: Path, other: Path) -> None:
    before, after = ({k: v for f in d.glob("*.safetensors") for k, v in load_file(f).items()} for d in (one, other))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    configs = [json.loads((d / "config.json").read_text())["quantization_config"] for d in (one, other)]
    assert configs[0] == configs[1]


def stream(dense: Path, recipe: dict, out: Path) -> Path:
    return run(prepare(dense, load_recipe(recipe)), out).folder


@pytest.mark.parametrize("name", ["llama-bias", "qwen3-tied"])
def test_data_free_recipe(dense_folder: Folder, tmp_path: Path, name: str) -> None:
    recipe = {"version": 1, "rules": [*RULES, {"match": "last_block", "scheme": "int3-g32-asym"}]}
    streamed = stream(dense_folder(name), recipe, tmp_path / "streamed")
    model = AutoModelForCausalLM.from_pretrained(
        dense_folder(name), dtype="auto", quantization_config=RecipeConfig(recipe)
    )
    model.save_pretrained(tmp_path / "saved")
    assert_same_folder(tmp_path / "saved", streamed)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(streamed, dtype="auto")), logits(model))


def test_calibrated_recipe(dense_folder: Folder, tmp_path: Path, recipe: dict) -> None:
    dense = tmp_path / "dense"
    AutoModelForCausalLM.from_pretrained(dense_folder("llama-bias"), dtype="auto").save_pretrained(dense)
    tokenizer().save_pretrained(dense)
    streamed = stream(dense, recipe, tmp_path / "streamed")
    model = AutoModelForCausalLM.from_pretrained(dense, dtype="auto", quantization_config=RecipeConfig(recipe))
    model.save_pretrained(tmp_path / "saved")
    assert_same_folder(tmp_path / "saved", streamed)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(streamed, dtype="auto")), logits(model))


def test_calibrated_recipe_with_a_given_tokenizer(dense_folder: Folder, recipe: dict) -> None:
    dense = dense_folder("llama")
    with pytest.raises(DataError, match="tokenizer"):
        AutoModelForCausalLM.from_pretrained(dense, dtype="auto", quantization_config=RecipeConfig(recipe))
    config = RecipeConfig(recipe, tokenizer=tokenizer())
    model = AutoModelForCausalLM.from_pretrained(dense, dtype="auto", quantization_config=config)
    assert model.config.quantization_config.to_dict()["quant_method"] == "compressed-tensors"


def test_calibrated_recipe_needs_every_weight(dense_folder: Folder, recipe: dict, tmp_path: Path) -> None:
    tensors = load_file(dense_folder("llama") / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((dense_folder("llama") / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=RecipeConfig(recipe, tokenizer=tokenizer()))


def test_calibrated_recipe_needs_one_device(dense_folder: Folder, recipe: dict, tmp_path: Path) -> None:
    config, places = RecipeConfig(recipe, tokenizer=tokenizer()), {"model": "cpu", "lm_head": "disk"}
    with pytest.raises(PlanError, match="one device"):
        AutoModelForCausalLM.from_pretrained(
            dense_folder("llama"), quantization_config=config, device_map=places, offload_folder=tmp_path
        )


def test_calibration_outside_the_blocks_is_refused(dense_folder: Folder, recipe: dict) -> None:
    recipe["rules"] = [*RULES, {"match": "lm_head", "scheme": "int8"}]
    with pytest.raises(PlanError, match="outside the decoder blocks"):
        AutoModelForCausalLM.from_pretrained(dense_folder("llama"), quantization_config=RecipeConfig(recipe))
