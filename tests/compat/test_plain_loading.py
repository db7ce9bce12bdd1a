"""What plain transformers loses or computes otherwise, by converters, replaced modules and words of an architecture.

tests/architectures loads models of real architectures in plain transformers, which agrees.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.core_model_loading import MergeModulelist, WeightConverter, WeightRenaming
from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION

from llmquant.compat import plain_loading
from llmquant.compat.plain_loading import initialisations, lost_parameters, upcast_scales
from llmquant.compat.quantizers import METHOD

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
                         "num_attention_heads": 1, "num_key_value_heads": 1}  # fmt: skip

NAMES = ["model.layers.0.mlp.up_proj", "lm_head"]


@pytest.fixture
def model() -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**SMALL))


def converter(sources: list[str], targets: list[str]) -> WeightConverter:
    return WeightConverter(source_patterns=sources, target_patterns=targets, operations=[MergeModulelist(dim=0)])


def lost(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, *mapping: object) -> dict[str, str]:
    """By the end of the name; the reason's first words."""
    monkeypatch.setattr(plain_loading, "get_model_conversion_mapping", lambda _: list(mapping))
    found = lost_parameters(model)
    return {name.removeprefix("model.layers.0."): " ".join(said.split()[:3]) for name, said in found.items()}


def test_converters(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lost(model, monkeypatch) == {}
    several = converter(["mlp.a.weight", "mlp.b.weight"], ["mlp.up_proj.weight"])
    assert lost(model, monkeypatch, several) == {"mlp.up_proj.weight": "it looks for"}
    split = converter(["self_attn.qk.weight"], ["q_proj.weight", "k_proj.weight"])
    found = dict.fromkeys(("self_attn.q_proj.weight", "self_attn.k_proj.weight"), "it cannot split")
    assert lost(model, monkeypatch, split) == found


def test_what_is_left_alone(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = converter(["mlp.a.weight", "mlp.b_blocks"], ["mlp.up_proj.weight"])  # not all of them are weights
    shorter = converter(["mlp.a.weight"], ["mlp.up_proj"])
    renaming = WeightRenaming("mlp.a.weight", "mlp.up_proj.weight")
    assert lost(model, monkeypatch, blocks, shorter, renaming) == {}


def test_replaced_modules(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = {"LlamaMLP": {"quantization_methods": [METHOD]}, "LlamaAttention": {"quantization_methods": ["other"]}}
    for name, patch in replaced.items():
        monkeypatch.setitem(MODULES_TO_PATCH_FOR_QUANTIZATION, name, patch)
    several = converter(["mlp.a.weight", "mlp.b.weight"], ["mlp.up_proj.weight"])
    parts = (f"mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
    assert lost(model, monkeypatch, several) == dict.fromkeys(parts, "it replaces the")


def test_each_model_initialises_its_own_modules(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body is a model of its own; each module once, those without weights too, and nothing with gradients."""
    seen: list[tuple[str, nn.Module]] = []
    for owner, name in ((model, "whole"), (model.model, "body")):
        monkeypatch.setattr(owner, "_init_weights", lambda module, name=name: seen.append((name, module)))
    for initialise in initialisations(model):
        assert not torch.is_grad_enabled()
        initialise()
    assert [module for _, module in seen if module is model.lm_head] == [model.lm_head]
    assert {module for _, module in seen} == set(model.modules())
    assert len(seen) == len(list(model.modules()))
    whole = {type(module).__name__ for name, module in seen if name == "whole"}
    assert whole == {"LlamaForCausalLM", "Linear"}


@pytest.mark.parametrize(
    ("dtype", "words", "found"),
    [
        ("bfloat16", ["scale"], NAMES),  # HYV4
        ("float32", ["scale"], []),
        ("bfloat16", ["lm_head", "norm"], []),  # the whole layer, packed or not
        ("bfloat16", ["up_proj", "weight_*"], NAMES[1:]),
        ("float16", ["up_proj.weight_scale"], NAMES[:1]),
        ("bfloat16", [], []),
    ],
)
def test_words_that_mean_scales_too(dtype: str, words: list[str], found: list[str]) -> None:
    class Words(LlamaForCausalLM):
        _keep_in_fp32_modules_strict = words

    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, dtype=dtype
    )
    with torch.device("meta"):
        model = Words(config)
    reasons = upcast_scales(model, NAMES)
    assert list(reasons) == found
    assert all(any(f"'{word}'" in reason for word in words) for reason in reasons.values())
