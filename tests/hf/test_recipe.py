"""`RecipeConfig`: quantizing inside `from_pretrained` equals quantizing any other way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from llmquant.engine.prepare import prepare
from llmquant.engine.run import run
from llmquant.errors import CheckpointError, DataError, PlanError, QuantizationError, RecipeError
from llmquant.hf.packed import PackedQuantizer
from llmquant.hf.recipe import RecipeConfig
from llmquant.nn.linear import PackedLinear
from llmquant.nn.storage import PackedStorage
from llmquant.recipe.load import load_recipe
from tests.hf.conftest import logits, schemes_in_blocks, write_packed

# Compared bit for bit with dense layers.
pytestmark = pytest.mark.usefixtures("reference_kernels")

Folder = Callable[[str], Path]


def test_a_recipe_that_trains_on_its_own_text_is_refused(dense_folder: Folder) -> None:
    with pytest.raises(RecipeError, match=r"'int4-g32-high' trains on its own text.*llmquant\.quantize\(source"):
        load(dense_folder("llama"), RecipeConfig("int4-g32-high"))


def rules(scheme: str, **more: Any) -> dict[str, object]:
    return {"version": 1, "rules": [{"match": "linear", "scheme": scheme}], **more}


def load(folder: Path, config: RecipeConfig, **kwargs: Any):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", quantization_config=config, **kwargs)


def assert_same_tensors(one: Path, other: Path) -> None:
    before, after = ({k: v for f in d.glob("*.safetensors") for k, v in load_file(f).items()} for d in (one, other))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def stored_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("llama", "int4-g32"), ("llama-bias", "int4-g16-asym"), ("qwen3-tied", "int8"), ("gpt2", "int3-g32")],
)
def test_on_the_fly_equals_fake_quant_and_the_written_folder(
    dense_folder: Folder, tmp_path: Path, name: str, scheme: str
) -> None:
    dense = dense_folder(name)
    schemes = schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), scheme)
    fake = write_packed(dense, tmp_path / "q", schemes)
    model = load(dense, RecipeConfig(rules(scheme, portable=name != "gpt2")))
    assert {n: m.scheme for n, m in model.named_modules() if isinstance(m, PackedStorage)} == schemes
    assert torch.equal(logits(model), logits(fake))
    assert not any(n.rpartition(".")[2] == "weight" and "proj" in n for n, _ in model.named_parameters())
    assert isinstance(model.hf_quantizer, PackedQuantizer)
    model.save_pretrained(tmp_path / "saved")
    assert_same_tensors(tmp_path / "saved", tmp_path / "q")
    assert stored_config(tmp_path / "saved")["quant_method"] == "compressed-tensors"
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    assert torch.equal(logits(reloaded), logits(model))


def test_the_dense_weight_is_dropped_at_once(dense_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a tensor is quantized, no earlier one is held dense."""
    from llmquant.hf.recipe import RecipeQuantizer

    quantize, held = RecipeQuantizer.quantize, []

    def spy(self, model, name, weight):
        held.append([n for n, p in model.named_parameters() if n.endswith("_proj.weight") and not p.is_meta])
        return quantize(self, model, name, weight)

    monkeypatch.setattr(RecipeQuantizer, "quantize", spy)
    load(dense_folder("llama"), RecipeConfig(rules("int4-g32")))
    assert held == [[]] * 14


def test_disk_offload(dense_folder: Folder, tmp_path: Path) -> None:
    dense = dense_folder("llama")
    fake = write_packed(
        dense, tmp_path / "q", schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32")
    )
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
              "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    config = RecipeConfig(rules("int4-g32"))
    model = load(dense, config, device_map=places, offload_folder=tmp_path / "offload")
    assert model.model.layers[1].mlp.down_proj.weight_packed.is_meta
    assert torch.equal(logits(model), logits(fake))


def test_plan_errors_come_before_weights(dense_folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((dense_folder("llama") / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((dense_folder("llama") / "model.safetensors").read_bytes()[:9000])
    with pytest.raises(PlanError, match="128"):
        load(tmp_path, RecipeConfig(rules("int4-g128")))


def test_tied_head_is_seen_before_weights_are_tied(dense_folder: Folder) -> None:
    rules = {"version": 1, "rules": [{"match": "lm_head", "scheme": "int8"}]}
    with pytest.raises(PlanError, match="tie_word_embeddings"):
        load(dense_folder("qwen3-tied"), RecipeConfig(rules))
    head = load(dense_folder("llama"), RecipeConfig(rules)).lm_head
    assert isinstance(head, PackedLinear)


def test_w8a8_is_refused(dense_folder: Folder) -> None:
    with pytest.raises(PlanError, match="while a model loads"):
        load(dense_folder("llama"), RecipeConfig("w8a8-dynamic"))


def test_nan_weight_is_an_error_that_names_it(dense_folder: Folder, tmp_path: Path) -> None:
    tensors = load_file(dense_folder("llama") / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((dense_folder("llama") / "config.json").read_bytes())
    with pytest.raises(QuantizationError, match=r"model\.layers\.0\.mlp\.up_proj"):
        load(tmp_path, RecipeConfig("int8"))


def test_missing_weight_is_an_error(dense_folder: Folder, tmp_path: Path) -> None:
    tensors = load_file(dense_folder("llama") / "model.safetensors")
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((dense_folder("llama") / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.0\.mlp\.up_proj\.weight and 1 more tensors"):
        load(tmp_path, RecipeConfig("int8"))


def test_a_layer_that_the_checkpoint_never_had_is_not_quantized(dense_folder: Folder) -> None:
    rules = [{"match": "linear", "scheme": "int8"}]
    classifier = AutoModelForSequenceClassification.from_pretrained
    model = classifier(
        dense_folder("llama"), dtype="auto", quantization_config=RecipeConfig({"version": 1, "rules": rules})
    )
    assert type(model.score) is torch.nn.Linear
    rules.append({"match": "score", "scheme": "int8"})
    with pytest.raises(PlanError, match=r"score: lies outside the decoder blocks"):
        classifier(
            dense_folder("llama"), dtype="auto", quantization_config=RecipeConfig({"version": 1, "rules": rules})
        )


def test_quantized_checkpoint_takes_no_recipe(dense_folder: Folder, tmp_path: Path) -> None:
    dense = dense_folder("llama")
    write_packed(dense, tmp_path / "q", schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int8"))
    with pytest.raises(ValueError, match="quantized with CompressedTensorsConfig but you are passing a RecipeConfig"):
        load(tmp_path / "q", RecipeConfig("int8"))


def test_config_says_what_it_is() -> None:
    config = RecipeConfig(rules("int4-g32"))
    assert config.to_dict()["quant_method"] == "llmquant"
    assert "int4-g32" in repr(config)


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
