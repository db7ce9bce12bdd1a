"""`num_parameters` and `resize_token_embeddings` of packed models: weights, not words of codes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import llmquant
from llmquant.errors import QuantizationError
from llmquant.hf.recipe import RecipeConfig
from llmquant.kernels.cpu import native
from llmquant.nn.counting import weight_count
from tests.hf.conftest import logits, schemes_in_blocks, write_packed

Folder = Callable[[str], Path]

BOTH = {
    "version": 1,
    "portable": False,
    "rules": [
        {"match": "linear", "scheme": "int4-g32-asym"},
        {"match": ["embedding", "lm_head"], "scheme": "int8"},
    ],
}


@pytest.fixture(params=["prepared", "as stored"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "as stored":
        monkeypatch.setattr(native, "wanted", lambda: False)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ["llama", "llama-bias", "qwen3-tied", "gemma3-tied", "gpt2"])
def test_a_packed_model_has_the_parameters_of_its_dense_one(dense_folder: Folder, name: str) -> None:
    dense = AutoModelForCausalLM.from_pretrained(dense_folder(name))
    packed = AutoModelForCausalLM.from_pretrained(dense_folder(name), quantization_config=RecipeConfig(BOTH))
    assert packed.num_parameters() == dense.num_parameters() == weight_count(packed) == weight_count(dense)
    assert packed.num_parameters(exclude_embeddings=True) == dense.num_parameters(exclude_embeddings=True)
    inner, dense_inner = packed.base_model, dense.base_model
    assert isinstance(inner, PreTrainedModel)
    assert isinstance(dense_inner, PreTrainedModel)
    assert inner.num_parameters() == dense_inner.num_parameters()
    for copied in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert copied.num_parameters() == dense.num_parameters()


def test_w8a8_counts_its_weights(dense_folder: Folder, tmp_path: Path) -> None:
    dense = AutoModelForCausalLM.from_pretrained(dense_folder("llama-bias"))
    write_packed(dense_folder("llama-bias"), tmp_path / "w8a8", schemes_in_blocks(dense, "w8a8-dynamic"))
    assert llmquant.load(tmp_path / "w8a8").num_parameters() == dense.num_parameters()


def test_trainable_parameters_are_those_that_ask_for_a_gradient(dense_folder: Folder) -> None:
    packed = AutoModelForCausalLM.from_pretrained(dense_folder("llama"), quantization_config=RecipeConfig(BOTH))
    packed.requires_grad_(False)
    packed.model.norm.weight.requires_grad_(True)
    assert packed.num_parameters(only_trainable=True) == packed.model.norm.weight.numel()


def test_methods_of_dense_models_are_as_they_were(dense_folder: Folder) -> None:
    model = AutoModelForCausalLM.from_pretrained(dense_folder("llama"))
    llmquant.hf._install(None)  # a second time: the methods are wrapped once
    before = model.num_parameters()
    assert model.resize_token_embeddings(99).weight.shape[0] == 99
    assert model.num_parameters() == before + 2 * 3 * 64
    assert model.num_parameters.__name__ == "num_parameters"


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ["llama", "qwen3-tied", "gpt2"])
def test_a_packed_vocabulary_is_not_resized(dense_folder: Folder, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(dense_folder(name), quantization_config=RecipeConfig(BOTH))
    before = logits(model)
    for tokens, multiple in [(100, None), (90, None), (None, 64), (96, 64)]:
        with pytest.raises(QuantizationError, match=r"packed \(int8, 96 tokens\) .* model\.dequantize\(\)"):
            model.resize_token_embeddings(tokens, multiple)
    for tokens, multiple in [(None, None), (96, None), (95, 32)]:
        assert model.resize_token_embeddings(tokens, multiple) is model.get_input_embeddings()
    assert torch.equal(logits(model), before)
    dense = model.dequantize()  # the way out that the message names
    dense.resize_token_embeddings(100)
    assert logits(dense).shape[-1] == dense.config.vocab_size == 100


def test_a_packed_head_alone_stops_it_before_anything_changed(dense_folder: Folder) -> None:
    head = {"version": 1, "portable": False, "rules": [{"match": "lm_head", "scheme": "int8"}]}
    model = AutoModelForCausalLM.from_pretrained(dense_folder("llama"), quantization_config=RecipeConfig(head))
    with pytest.raises(QuantizationError, match="lm_head of this model is packed"):
        model.resize_token_embeddings(100)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == 96


def test_a_vocabulary_that_was_kept_is_resized(dense_folder: Folder) -> None:
    layers = {"version": 1, "rules": [{"match": "linear", "scheme": "int4-g32"}]}
    model = AutoModelForCausalLM.from_pretrained(dense_folder("qwen3-tied"), quantization_config=RecipeConfig(layers))
    before = model.num_parameters()
    model.resize_token_embeddings(100)
    assert model.num_parameters() == before + 4 * 64
    assert logits(model).shape[-1] == 100
