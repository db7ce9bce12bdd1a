"""The parameters of a prepared model in groups, each with its own learning rate and weight decay.

Adam moves every weight by about its rate, whatever the gradient's size. So what a rate means for a rounded weight is
how many updates it takes to the next integer, and rates are in units of the layer's own grid: a number then says the
same of 2 and 8 bits, and of models whose weights differ.
"""

from __future__ import annotations

import math
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

    A weight learns by `learning_rate` times the mean scale of its layer, matrices that are not rounded by that times
    the mean of those; scales and vectors by `scale_learning_rate`, without decay. Of a low-rank change `b @ a` the rate
    of `b` is such that an update moves their product about as far as it would move the weight, and that of `a` is
    relative to its own size: one rate for both would scramble `a` where grids are coarse (LoRA+, arXiv 2402.12354, has
    more on why they differ).

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
    """What a rate is in units of, of each matrix that is rounded or changes one that is, by the matrix's id."""
    found = {}
    for layer in fake_layers(model).values():
        step = layer.weight_scale.abs().mean().item()
        found[id(layer.weight)] = step
        for b, a, scale in layer.terms():
            size = a.detach().float().square().mean().sqrt().item()
            found[id(a)] = size
            # Signs of an update of `b` and of a row of `a` are independent: `rank` products add up as a random walk.
            found[id(b)] = step / (abs(scale) * size * math.sqrt(a.shape[0])) if size and scale else step
    return found


def make_optimizer(model: nn.Module, qat: Qat | None = None) -> torch.optim.AdamW:
    """AdamW for `Trainer(optimizers=(make_optimizer(model), None))`; by default as the model's recipe says."""
    return torch.optim.AdamW(parameter_groups(model, qat or qat_state(model).qat), fused=True)
