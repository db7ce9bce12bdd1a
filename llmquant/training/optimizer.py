"""The parameters of a prepared model in groups, each with its own learning rate and weight decay.

Adam moves every weight by about its rate, whatever the gradient's size. So what a rate means for a rounded weight is
how many updates it takes to the next integer, and rates are in units of the layer's own grid: a number then says the
same of 2 and 8 bits, and of models whose weights differ.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from llmquant.errors import RecipeError
from llmquant.hf.qat import fake_layers, qat_state
from llmquant.recipe.qat import Qat

SCALES = "weight_scale_change"


def parameter_groups(model: nn.Module, qat: Qat) -> list[dict[str, Any]]:
    """For an optimizer of torch.

    A weight and its low-rank changes learn by `learning_rate` times the mean scale of their layer, matrices that are
    not rounded by `learning_rate` times the mean of those; scales and vectors by `scale_learning_rate`, without decay.

    Raises:
        RecipeError: if nothing is trained.
    """
    steps = _steps(model)
    usual = sum(steps.values()) / len(steps) if steps else 1.0
    groups: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith(SCALES) or parameter.ndim < 2:
            kind = (qat.scale_learning_rate, 0.0)
        else:
            kind = (qat.learning_rate * steps.get(id(parameter), usual), qat.weight_decay)
        groups[kind].append(parameter)
    if not groups:
        raise RecipeError(
            "nothing would be trained: no parameter asks for a gradient; with ranges frozen and lora off, qat.train "
            "names what learns"
        )
    return [{"params": some, "lr": rate, "weight_decay": decay} for (rate, decay), some in groups.items()]


def _steps(model: nn.Module) -> dict[int, float]:
    """The mean scale of the layer of each matrix that is rounded, or changes one that is, by the matrix's id."""
    found = {}
    for layer in fake_layers(model).values():
        step = layer.weight_scale.abs().mean().item()
        found[id(layer.weight)] = step
        found |= {id(tensor): step for term in layer.terms() for tensor in term[:2]}
    return found


def make_optimizer(model: nn.Module, qat: Qat | None = None) -> torch.optim.AdamW:
    """AdamW for `Trainer(optimizers=(make_optimizer(model), None))`; by default as the model's recipe says."""
    return torch.optim.AdamW(parameter_groups(model, qat or qat_state(model).qat), fused=True)
