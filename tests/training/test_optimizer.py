"""Groups of parameters: rates and decay where they belong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import llmquant
from llmquant.errors import RecipeError
from llmquant.recipe.qat import Qat
from llmquant.training.optimizer import make_optimizer, parameter_groups
from tests.engine.conftest import tiny_llama
from tests.hf.test_qat import recipe


def test_scales_have_their_rate_and_do_not_decay() -> None:
    qat = Qat(learning_rate=1e-5, scale_learning_rate=1e-3, weight_decay=0.1)
    model: Any = llmquant.prepare_qat(tiny_llama().float(), recipe())
    optimizer = make_optimizer(model, qat)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    layer = model.model.layers[0]
    assert found[id(layer.mlp.up_proj.weight)] == (1e-5, 0.1)
    assert found[id(layer.mlp.up_proj.weight_scale_change)] == (1e-3, 0.0)
    assert found[id(layer.input_layernorm.weight)] == (1e-5, 0.0)
    assert id(model.model.embed_tokens.weight) not in found
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)


def test_nothing_to_train_is_said() -> None:
    model: Any = llmquant.prepare_qat(tiny_llama(), recipe(ranges="frozen"))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(RecipeError, match="nothing would be trained"):
        parameter_groups(model, Qat())


def test_steps_of_scales_are_relative() -> None:
    model: Any = llmquant.prepare_qat(tiny_llama().float(), recipe(ranges="scales-only", train="quantized"))
    before = {name: layer.quantized().scales for name, layer in llmquant_layers(model).items()}
    optimizer = make_optimizer(model, Qat(scale_learning_rate=0.01))
    model(torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
    optimizer.step()
    for name, layer in llmquant_layers(model).items():
        moved = (layer.quantized().scales / before[name]).log().abs()
        assert float(moved.max()) == pytest.approx(0.01, rel=0.01)


def llmquant_layers(model: Any) -> dict[str, Any]:
    from llmquant.hf.qat import fake_layers

    return dict(fake_layers(model))
