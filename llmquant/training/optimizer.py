"""The parameters of a prepared model in groups, each with its own learning rate and weight decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llmquant.errors import RecipeError
from llmquant.hf.qat import qat_state
from llmquant.recipe.qat import Qat

SCALES = "weight_scale_change"


def parameter_groups(model: nn.Module, qat: Qat) -> list[dict[str, Any]]:
    """For an optimizer of torch: scales have their own rate, and neither they nor vectors decay.

    Raises:
        RecipeError: if nothing is trained.
    """
    scales, vectors, matrices = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = scales if name.endswith(SCALES) else vectors if parameter.ndim < 2 else matrices
            kind.append(parameter)
    if not (scales or vectors or matrices):
        raise RecipeError(
            "nothing would be trained: no parameter asks for a gradient; with ranges frozen and lora off, qat.train "
            "names what learns"
        )
    groups = [
        {"params": matrices, "lr": qat.learning_rate, "weight_decay": qat.weight_decay},
        {"params": vectors, "lr": qat.learning_rate, "weight_decay": 0.0},
        {"params": scales, "lr": qat.scale_learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, qat: Qat | None = None) -> torch.optim.AdamW:
    """AdamW for `Trainer(optimizers=(make_optimizer(model), None))`; by default as the model's recipe says."""
    return torch.optim.AdamW(parameter_groups(model, qat or qat_state(model).qat), fused=True)
