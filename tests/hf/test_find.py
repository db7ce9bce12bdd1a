"""Which modules of a model a checkpoint stores packed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from llmquant.engine.prepare import prepare
from llmquant.engine.run import run
from llmquant.errors import CheckpointError
from llmquant.formats.compressed_tensors.config import quantization_config, schemes_of
from llmquant.hf.find import NotPackable, find_packed
from llmquant.nn.linear import PackedLinear
from llmquant.recipe.load import load_recipe
from llmquant.spec import Scheme
from tests.architectures.tiny import tiny_model
from tests.hf import open_classes
from tests.hf.conftest import edit_quantization

INT8 = Scheme.parse("int8-g32")
HEAD, TABLE = "lm_head", "model.embed_tokens"


def stored(*names: str) -> dict:
    return quantization_config(dict.fromkeys(names, INT8), [], embeddings=True)


def keys(*names: str) -> list[str]:
    return [f"{name}.weight_{part}" for name in names for part in ("packed", "scale", "shape")]


def test_of_a_tied_pair_the_embedding_is_packed() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    assert find_packed(model, stored(TABLE), keys(TABLE)) == {TABLE: INT8}
    assert find_packed(model, stored(HEAD, TABLE), keys(HEAD, TABLE)) == {TABLE: INT8}
    with pytest.raises(NotPackable, match=f"{HEAD} is packed, but shares the weight of {TABLE}, which is not"):
        find_packed(model, stored(HEAD), keys(HEAD))


def test_apart_each_is_packed_for_itself() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    assert find_packed(model, stored(HEAD), keys(HEAD)) == {HEAD: INT8}
    assert find_packed(model, stored(HEAD, TABLE), keys(HEAD, TABLE)) == {HEAD: INT8, TABLE: INT8}


# Compared with what is stored.
pytestmark = pytest.mark.usefixtures("reference_kernels")

LINEAR, EXPERTS = {"match": "linear", "scheme": "int4-g32"}, {"match": "experts", "scheme": "keep"}
SMALL: dict[str, Any] = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                         "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip
VISION = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 2}


def _gemma3() -> PreTrainedModel:
    """Its vision tower has the layer names of its text model."""
    text = SMALL | {"sliding_window": 8, "query_pre_attn_scalar": 16}
    vision = VISION | {"image_size": 16, "patch_size": 4}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))


def _qwen3_5() -> PreTrainedModel:
    text = SMALL | {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2,
                    "linear_num_key_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32}  # fmt: skip
    # fmt: off
    vision = {"depth": 1, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 64,
              "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2, "num_position_embeddings": 16}
    # fmt: on
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision))


def _llama4() -> PreTrainedModel:
    config = Llama4TextConfig(**SMALL, intermediate_size_mlp=96, num_local_experts=2, pad_token_id=0, bos_token_id=0,
                              eos_token_id=0)  # fmt: skip
    return Llama4ForCausalLM(config)


MODELS: dict[str, tuple[Callable[[], PreTrainedModel], tuple[str, ...]]] = {
    "llama": (
        lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
        ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"),
    ),
    "gemma3": (
        _gemma3,
        ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForSequenceClassification"),
    ),
    "qwen3_5": (_qwen3_5, ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText")),
    "llama4": (_llama4, ("AutoModelForCausalLM",)),  # plain transformers replaces its experts
}
DRAFT = ("model.layers.2.self_attn.q_proj", "mtp.layers.0.mlp.up_proj", "mtp.layers.0.self_attn.q_proj")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Dense and packed folder of a model whose tensors all differ; the Llama has draft layers beside its own."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in made:
            torch.manual_seed(5)
            folder = tmp_path_factory.mktemp(name)
            model = MODELS[name][0]().bfloat16()
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
            model.save_pretrained(folder / "dense")
            if name == "llama":
                file = folder / "dense" / "model.safetensors"
                extra = {f"{layer}.weight": torch.randn(64, 64).bfloat16() for layer in DRAFT}
                save_file(load_file(file) | extra, file, metadata={"format": "pt"})
            rules = [LINEAR, EXPERTS] if name == "llama4" else [LINEAR]
            recipe = load_recipe({"version": 1, "rounding": {"method": "rtn"}, "rules": rules})
            run(prepare(folder / "dense", recipe), folder / "packed")
            made[name] = folder / "dense", folder / "packed"
        return made[name]

    return make


@pytest.mark.parametrize("name", MODELS)
def test_in_llmquant(folders: Callable[[str], tuple[Path, Path]], name: str) -> None:
    for class_name in MODELS[name][1]:
        assert open_classes.misplaced(*folders(name), class_name) == []


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "qwen3_5" else [pytest.mark.slow])  # a process each
        for name in MODELS
        if name != "llama4"
    ],
)
def test_in_plain_transformers(folders: Callable[[str], tuple[Path, Path]], name: str) -> None:
    pytest.importorskip("compressed_tensors")
    command = [sys.executable, open_classes.__file__, *map(str, folders(name)), *MODELS[name][1]]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_the_config_is_short_and_lists_what_the_text_model_lacks(folders: Callable[[str], tuple[Path, Path]]) -> None:
    for name in ("llama", "gemma3", "qwen3_5"):
        packed = folders(name)[1]
        stored = json.loads((packed / "config.json").read_text())["quantization_config"]
        assert len(stored["config_groups"]["group_0"]["targets"]) == 1
        assert len(stored["ignore"]) <= 6
        table = schemes_of(
            {**stored, "config_groups": {"all": {**stored["config_groups"]["group_0"], "targets": ["Linear"]}}}
        )
        tensors = open_classes.read(packed)
        for key, tensor in tensors.items():
            if key.endswith(".weight") and tensor.ndim == 2:
                scheme = table.scheme_for(key.removesuffix(".weight"))
                assert scheme is not None
                assert scheme.is_keep, key
    assert {f"{layer}.weight" for layer in DRAFT} <= open_classes.read(folders("llama")[1]).keys()


def test_a_class_target_does_no_harm(folders: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    """As older files and other tools have it: it names the vision tower too, which is stored as it was."""
    dense, packed = folders("gemma3")
    shutil.copytree(packed, tmp_path / "q")

    def by_class(stored: dict) -> None:
        stored["config_groups"]["group_0"]["targets"] = ["Linear"]
        stored["ignore"] = ["lm_head"]

    edit_quantization(tmp_path / "q", by_class)
    assert open_classes.misplaced(dense, tmp_path / "q", "AutoModelForImageTextToText") == []


def test_a_new_head_may_be_new_and_nothing_else(folders: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    shutil.copytree(folders("llama")[1], tmp_path / "q")
    file = next(f for f in sorted((tmp_path / "q").glob("*.safetensors")) if "model.norm.weight" in load_file(f))
    tensors = load_file(file)
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "q", dtype="auto")
    assert not isinstance(classifier.score, PackedLinear)
    for missing in ("model.norm.weight", "lm_head.weight"):
        save_file({k: v for k, v in tensors.items() if k != missing}, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=f"lacks {missing}"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype="auto")
    # A classifier has no use for the head that predicts tokens.
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "q", dtype="auto")
