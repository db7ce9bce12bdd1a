"""Refit the scales of a block's rounded weights, all together, to what the block puts out; the integers stay.

Rounding chooses the scales of each layer for that layer alone. Here Adam takes steps on the relative change of every
scale of the block, to lessen the squared error of its outputs. The weights are those that readers will see: scales
rounded to the dtype they are stored in. Every eighth batch is held out; the scales change only if the error on those
falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from llmquant.algorithms.tuning.base import BlockCall, Hidden, TunedLayer, TuningResult
from llmquant.algorithms.tuning.shared.descend import improve
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
    """Refit the scales of one block; see `base.Tuning.tune`."""
    return improve(block, calls, targets, layers, _Scales(layers, options.rate), options.steps)


class _Scales:
    """The scales of all layers as a start and a change of their logarithms."""

    def __init__(self, layers: Mapping[str, TunedLayer], rate: float) -> None:
        self._layers, self._rate = layers, rate
        self._changes = {
            name: torch.zeros_like(layer.quantized.scales, dtype=torch.float32).requires_grad_()
            for name, layer in layers.items()
        }

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self._changes.values()), "lr": self._rate}]

    def weights(self) -> dict[str, Float32[Tensor, "_ _"]]:
        found = {}
        for name, layer in self._layers.items():
            stored = layer.quantized
            weight = dequantize(stored.codes, self._stored(name), stored.zeros, stored.scales.dtype)
            found[f"{name}.weight"] = weight.T if layer.turned else weight
        return found

    def quantized(self) -> dict[str, QuantizedTensor]:
        found = {}
        for name, layer in self._layers.items():
            start = layer.quantized
            scales = self._stored(name).detach().to(start.scales.dtype)
            found[name] = QuantizedTensor(start.codes, scales, start.zeros)
        return found

    def keep_within(self) -> None:
        for change in self._changes.values():
            change.clamp_(-_LARGEST_CHANGE, _LARGEST_CHANGE)

    def _stored(self, name: str) -> Float32[Tensor, "rows groups"]:
        start = self._layers[name].quantized.scales
        return stored_scales(start.float() * self._changes[name].exp(), start.dtype)
