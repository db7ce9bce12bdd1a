"""What every transform promises. A new file in llmquant/algorithms/transforms is found by its name."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from llmquant import statistics
from llmquant.algorithms import transforms
from llmquant.algorithms.transforms.base import Block, Transform
from llmquant.errors import RecipeError
from llmquant.models.families import FAMILIES
from llmquant.models.skeleton import build_skeleton, decoder_blocks
from tests.algorithms.transforms.conftest import in_float64, logits, transformed
from tests.architectures.tiny import tiny_config, tiny_model

TYPES = (
    "apertus", "arcee", "bloom", "cohere", "cohere2", "ernie4_5", "exaone4", "falcon", "gemma", "gemma2",
    "gemma3_text", "glm", "glm4", "gpt2", "gptj", "gpt_neox", "granite", "helium", "hunyuan_v1_dense", "llama",
    "ministral3", "mistral", "mpt", "nemotron", "olmo", "olmo2", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3",
    "seed_oss", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((model_type, {}) for model_type in TYPES),
    ("falcon", {"new_decoder_architecture": True}),
    ("falcon", {"parallel_attn": False, "bias": True}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("stablelm", {"use_parallel_residual": True}),
]


@pytest.fixture(params=transforms.names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def find(name: str) -> Transform:
    return transforms.find(name)


def test_module(name: str) -> None:
    assert set(statistics.names()) >= find(name).NEEDS
    options: Any = find(name).Options()
    assert options.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(options))


def test_every_family_is_tried() -> None:
    seen = {type(decoder_blocks(build_skeleton(tiny_config(model_type)))[1][0]).__name__ for model_type in TYPES}
    assert seen == set(FAMILIES)


@pytest.mark.parametrize(("model_type", "changes"), VARIANTS, ids=str)
def test_a_model_computes_what_it_did(name: str, model_type: str, changes: dict[str, Any]) -> None:
    model = tiny_model(model_type, dtype=torch.float64, **changes)
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms and biases of all sizes
            parameter.data.add_(torch.randn_like(parameter) * (0.1 if "norm" in parameter_name else 0.5))
    with in_float64():
        before = logits(model)
    edits = transformed(model, name)
    path, blocks = decoder_blocks(model)
    expected = any(find(name).why_not(Block(f"{path}.{i}", block)) is None for i, block in enumerate(blocks))
    assert bool(edits) == expected
    with in_float64():
        after = logits(model)
    assert (after - before).abs().max() <= 1e-9 * before.abs().max()


def test_edits_are_the_same_when_made_again(name: str) -> None:
    one, other = (transformed(copy.deepcopy(tiny_model("llama", dtype=torch.float32)), name) for _ in range(2))
    for left, right in zip(one, other, strict=True):
        assert (left.kind, left.name) == (right.kind, right.name)
        assert left.by is right.by or torch.equal(left.by, right.by)  # pyright: ignore[reportArgumentType]


def test_unknown_families_are_named(name: str) -> None:
    model = build_skeleton(tiny_config("gpt_bigcode"))
    path, blocks = decoder_blocks(model)
    block = Block(f"{path}.0", blocks[0])
    assert not find(name).reads(block)
    assert f"{name} leaves transformer.h.0 as it is" in (find(name).why_not(block) or "")
    assert not find(name).fit(block, {}, find(name).Options())


def test_what_is_no_transform() -> None:
    with pytest.raises(RecipeError, match="unknown transform 'smothquant'; did you mean 'smoothquant'"):
        transforms.find("smothquant")
    assert "base" not in transforms.names()
