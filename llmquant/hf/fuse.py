"""`fuse`: decoder layers that run in four kernel calls instead of seven, with the norms and additions inside.

Only the `forward` of a layer changes, on the instance: modules, parameter names and what is saved stay as they are.
"""

from __future__ import annotations

from types import MethodType

from torch import nn

from llmquant.hf import fused_layers
from llmquant.models.families import find_family


def fuse(model: nn.Module) -> int:
    """Let decoder layers run fused whose linear layers are all prepared, each group for the same kernels.

    A fused layer runs its original forward whenever the fused one would not do the same: in training, for a gradient,
    with hooks or replaced parts, when attentions are asked for, on another device. A copy of the model is fused too.

    Returns how many layers are fused now, those that were before included.
    """
    for layer in model.modules():
        family = find_family(layer)
        if family and family.fusing and _has_own_forward(layer) and fused_layers.find_parts(layer, family.fusing):
            layer.forward = MethodType(fused_layers.forward, layer)
    return sum(map(is_fused, model.modules()))


def unfuse(model: nn.Module) -> int:
    """Give fused layers their original forward back.

    Returns how many were fused.
    """
    layers = [layer for layer in model.modules() if is_fused(layer)]
    for layer in layers:
        del layer.forward
    return len(layers)


def is_fused(layer: nn.Module) -> bool:
    """Whether a layer has the fused forward, which may still leave single calls to the original one."""
    return getattr(layer.__dict__.get("forward"), "__func__", None) is fused_layers.forward


def _has_own_forward(layer: nn.Module) -> bool:
    """Whether calling a layer runs its class's forward; pickle may have bound that to the instance."""
    forward = layer.__dict__.get("forward")
    return forward is None or getattr(forward, "__func__", None) is type(layer).forward
