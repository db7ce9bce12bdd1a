"""Refit the scales of a block's rounded weights, all together, to what the block puts out; the integers stay.

Rounding chooses the scales of each layer for that layer alone. Here Adam takes steps on the relative change of every
scale of the block, to lessen the squared error of its outputs. The weights are those that readers will see: scales
rounded to the dtype they are stored in. Every other batch is held out; the scales change only if the error on those
falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.func import functional_call

from llmquant.algorithms.tuning.base import BlockCall, Hidden, TunedLayer, TuningResult
from llmquant.errors import RecipeError
from llmquant.numerics.fake_quant import dequantize, stored_scales
from llmquant.numerics.quantized import QuantizedTensor

_LARGEST_CHANGE = 0.25  # of the logarithm of a scale: refitting moves scales, it does not choose new ones


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the refit.

    Attributes:
        steps: of Adam, each on one batch.
        rate: of the first step, relative to the scale; it falls to 0 in a straight line.
    """

    steps: int = 64
    rate: float = 2e-3

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise RecipeError(f"scale_refit: steps is at least 1, not {self.steps}")
        if not 0 < self.rate <= 0.1:
            raise RecipeError(f"scale_refit: rate is above 0 and at most 0.1, not {self.rate}")


def tune(
    block: nn.Module,
    calls: Sequence[BlockCall],
    targets: Sequence[Hidden],
    layers: Mapping[str, TunedLayer],
    options: Options,
) -> TuningResult:
    """Refit the scales of one block; see `base.Tuning.tune`.

    With one batch none can be held out, and nothing changes.
    """
    batches = list(zip(calls, targets, strict=True))
    fitted, held_out = batches[::2], batches[1::2]
    kept = {name: layer.quantized for name, layer in layers.items()}
    if not held_out or not layers:
        return TuningResult(kept, 0.0, 0.0)
    scales = _Scales(layers)
    with torch.no_grad():
        before = _error(block, scales, held_out)
    with torch.enable_grad():
        _descend(block, scales, fitted, options)
    with torch.no_grad():
        after = _error(block, scales, held_out)
    if not after < before:  # NaN too
        return TuningResult(kept, before, before)
    return TuningResult(scales.quantized(), before, after)


class _Scales:
    """The scales of all layers as a start and a change of their logarithms."""

    def __init__(self, layers: Mapping[str, TunedLayer]) -> None:
        self._layers = layers
        self.changes = {
            name: torch.zeros_like(layer.quantized.scales, dtype=torch.float32).requires_grad_()
            for name, layer in layers.items()
        }

    def weights(self) -> dict[str, Float32[Tensor, "_ _"]]:
        """The parameters of the block that have changed, with their gradients."""
        found = {}
        for name, layer in self._layers.items():
            stored = layer.quantized
            weight = dequantize(stored.codes, self._stored(name), stored.zeros, stored.scales.dtype)
            found[f"{name}.weight"] = weight.T if layer.turned else weight
        return found

    def quantized(self) -> dict[str, QuantizedTensor]:
        """The layers with their new scales."""
        found = {}
        for name, layer in self._layers.items():
            start = layer.quantized
            scales = self._stored(name).detach().to(start.scales.dtype)
            found[name] = QuantizedTensor(start.codes, scales, start.zeros)
        return found

    def _stored(self, name: str) -> Float32[Tensor, "rows groups"]:
        start = self._layers[name].quantized.scales
        return stored_scales(start.float() * self.changes[name].exp(), start.dtype)


def _descend(block: nn.Module, scales: _Scales, batches: Sequence[tuple[BlockCall, Hidden]], options: Options) -> None:
    changes = list(scales.changes.values())
    optimizer = torch.optim.Adam(changes, lr=options.rate)
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.rate * (1 - step / options.steps)
        call, target = batches[step % len(batches)]
        lost, power = _lost(block, scales.weights(), call, target)
        optimizer.zero_grad()
        (lost / power.clamp(min=torch.finfo(torch.float32).tiny)).backward(inputs=changes)
        optimizer.step()
        with torch.no_grad():
            for change in changes:
                change.clamp_(-_LARGEST_CHANGE, _LARGEST_CHANGE)


def _error(block: nn.Module, scales: _Scales, batches: Sequence[tuple[BlockCall, Hidden]]) -> float:
    weights = scales.weights()
    sums = [torch.stack(_lost(block, weights, call, target)).double() for call, target in batches]
    lost, power = torch.stack(sums).sum(0).tolist()
    return lost / power if power else 0.0


def _lost(
    block: nn.Module, weights: Mapping[str, Tensor], call: BlockCall, target: Hidden
) -> tuple[Float32[Tensor, ""], Float32[Tensor, ""]]:
    """Squared error and power of the outputs of one batch."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return functional_call(block, dict(weights), args, kwargs)

    output = call(run)
    return (output - target).float().square().sum(), target.float().square().sum()
