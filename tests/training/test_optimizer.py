"""Groups of parameters: rates and decay where they belong."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

import llmquant
from llmquant.errors import RecipeError
from llmquant.hf.qat import fake_layers
from llmquant.recipe.qat import Qat
from llmquant.training.optimizer import make_optimizer, parameter_groups
from tests.engine.conftest import tiny_llama
from tests.hf.test_qat import recipe


def test_rates_are_in_steps_of_the_grid_and_only_matrices_decay() -> None:
    qat = Qat(learning_rate=0.01, scale_learning_rate=1e-3, weight_decay=0.1)
    model: Any = llmquant.prepare_qat(tiny_llama().float(), recipe(train="all"))
    found = rates(model, qat)
    layers = [layer for block in model.model.layers for layer in (block.mlp.up_proj, block.self_attn.q_proj)]
    for layer in layers:
        step = float(layer.weight_scale.abs().mean())
        assert found[id(layer.weight)] == (pytest.approx(0.01 * step), 0.1)
        assert found[id(layer.weight_scale_change)] == (1e-3, 0.0)
    assert found[id(layers[0].weight)] != found[id(layers[1].weight)]
    assert found[id(model.model.layers[0].input_layernorm.weight)] == (1e-3, 0.0)
    usual = statistics.mean(float(layer.weight_scale.abs().mean()) for layer in fake_layers(model).values())
    assert found[id(model.model.embed_tokens.weight)] == (pytest.approx(0.01 * usual), 0.1)


def test_low_rank_changes_move_as_far_as_their_weights_would() -> None:
    model: Any = llmquant.prepare_qat(tiny_llama().float(), recipe(lora={"rank": 16, "alpha": 5.0}))
    layer = model.model.layers[1].mlp.down_proj
    size = float(layer.lora_a.detach().square().mean().sqrt())
    found = rates(model, Qat(learning_rate=0.01))
    assert found[id(layer.lora_a)][0] == pytest.approx(0.01 * size)
    assert id(layer.weight) not in found
    one_step(model, Qat(learning_rate=0.01))
    moved = (layer.lora_b @ layer.lora_a).detach() * 5 / 16
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.01 * float(layer.weight_scale.abs().mean()), rel=0.2)


def test_a_whole_step_of_the_rate_is_one_integer() -> None:
    model: Any = llmquant.prepare_qat(tiny_llama().float(), recipe(train="quantized", ranges="frozen"))
    before = {name: layer.quantized().codes for name, layer in fake_layers(model).items()}
    one_step(model, Qat(learning_rate=1.0))
    for name, layer in fake_layers(model).items():
        moved = (layer.quantized().codes - before[name]).abs().float()
        assert 0.4 < float(moved.mean()) < 1.5  # those of clipped weights do not move


def one_step(model: Any, qat: Qat) -> None:
    optimizer = make_optimizer(model, qat)
    model(torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
    optimizer.step()


def rates(model: Any, qat: Qat) -> dict[int, tuple[float, float]]:
    """The learning rate and decay of each parameter, by its id."""
    groups = make_optimizer(model, qat).param_groups
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found)
    return found


def test_nothing_to_train_is_said() -> None:
    model: Any = llmquant.prepare_qat(tiny_llama(), recipe(ranges="frozen"))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(RecipeError, match="nothing would be trained"):
        parameter_groups(model, Qat())


def test_steps_of_scales_are_relative() -> None:
    model: Any = llmquant.prepare_qat(tiny_llama().float(), recipe(ranges="scales-only", train="quantized"))
    before = {name: layer.quantized().scales for name, layer in fake_layers(model).items()}
    one_step(model, Qat(scale_learning_rate=0.01))
    for name, layer in fake_layers(model).items():
        moved = (layer.quantized().scales / before[name]).log().abs()
        assert float(moved.max()) == pytest.approx(0.01, rel=0.01)
