"""Descending on the error of a block's outputs, token by token, with weights that are made anew for every step.

Every eighth batch is held out, and decides whether the result is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.func import functional_call

from llmquant.algorithms.tuning.base import BlockCall, Hidden, TunedLayer, TuningResult
from llmquant.numerics.quantized import QuantizedTensor

Batches = Sequence[tuple[BlockCall, Hidden]]
_T = TypeVar("_T")
HELD_OUT = 8  # one of so many batches; at least the last


@runtime_checkable
class Learner(Protocol):
    """What is learned of the layers of a block."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups, as optimizers of torch take them, with the learning rates of the first step."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """The parameters of the block as readers will see them, by name, with gradients."""
        ...

    def quantized(self) -> Mapping[str, QuantizedTensor]:
        """The layers as they are now."""
        ...

    def keep_within(self) -> None:
        """Bring what was learned back to where it may be; called after every step."""
        ...


def improve(
    block: nn.Module,
    calls: Sequence[BlockCall],
    targets: Sequence[Hidden],
    layers: Mapping[str, TunedLayer],
    learner: Learner,
    steps: int,
) -> TuningResult:
    """Take `steps` of Adam, each on one batch, with rates that fall to 0 in a straight line; see `base.Tuning.tune`.

    The layers stay as they are where the error on the batches held out does not fall. With one batch none can be held
    out, and nothing changes.
    """
    batches = list(zip(calls, targets, strict=True))
    fitted, held_out = split(batches)
    kept = {name: layer.quantized for name, layer in layers.items()}
    if not held_out or not layers:
        return TuningResult(kept, 0.0, 0.0)
    start = {f"{name}.weight": _dense(layer) for name, layer in layers.items()}
    with torch.no_grad():
        before = _error(block, start, held_out)
    with torch.enable_grad():
        _descend(block, learner, fitted, steps)
    with torch.no_grad():
        after = _error(block, learner.weights(), held_out)
    if not after < before:  # NaN too
        return TuningResult(kept, before, before)
    return TuningResult(dict(learner.quantized()), before, after)


def split(batches: Sequence[_T]) -> tuple[list[_T], list[_T]]:
    """Those to fit to, and those held out: none of one batch."""
    last = len(batches) - 1
    out = {*range(HELD_OUT - 1, len(batches), HELD_OUT)} or {last} - {0}
    return [b for i, b in enumerate(batches) if i not in out], [b for i, b in enumerate(batches) if i in out]


def _dense(layer: TunedLayer) -> Tensor:
    weight = layer.quantized.dequantize().float()
    return weight.T if layer.turned else weight


def _descend(block: nn.Module, learner: Learner, batches: Batches, steps: int) -> None:
    optimizer = torch.optim.Adam(learner.groups())
    rates = [group["lr"] for group in optimizer.param_groups]
    learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / steps)
        call, target = batches[step % len(batches)]
        optimizer.zero_grad()
        _lost(block, learner.weights(), call, target).mean().backward(inputs=learned)
        optimizer.step()
        with torch.no_grad():
            learner.keep_within()


def _error(block: nn.Module, weights: Mapping[str, Tensor], batches: Batches) -> float:
    return torch.cat([_lost(block, weights, call, target) for call, target in batches]).double().mean().item()


def _lost(
    block: nn.Module, weights: Mapping[str, Tensor], call: BlockCall, target: Hidden
) -> Float32[Tensor, " tokens"]:
    """Squared error of the output for each token, relative to the power of its target (0 where that is 0).

    What reads the output normalizes each token, and some have thousands of times the power of others (in SmolLM2 the
    first of a window), so that they would decide alone.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        return functional_call(block, dict(weights), args, kwargs)

    error, power = ((call(run) - target).float().square().sum(-1), target.float().square().sum(-1))
    return torch.where(power > 0, error / power.clamp(min=torch.finfo(torch.float32).tiny), 0.0).flatten()
