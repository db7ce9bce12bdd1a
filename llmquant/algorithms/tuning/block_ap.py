"""Train the weights and scales of a block, all together, so that it puts out what it did before it was rounded.

Block-AP is the first stage of EfficientQAT (Chen et al. 2024, arXiv 2407.11062, section 3.1), which trains whole blocks
with the straight-through estimator, one after another: quantization-aware training for models that do not fit. Theirs
starts from round to nearest with zero points that learn; ours starts from whatever rounding gave its codes, with the
dense weights beside them, so that a weight near a boundary can cross it. Every eighth batch is held out; the block
changes only if the error on those falls.
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
from llmquant.numerics.fake_quant import fake_quantize, in_cells, stored_scales
from llmquant.numerics.grid import Grid, round_to_grid
from llmquant.numerics.quantized import QuantizedTensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the training.

    Attributes:
        steps: of Adam, each on one batch.
        rate: of the first step of a weight, in units of the mean scale of its layer; it falls to 0 in a straight line.
        scale_rate: of the first step of a scale, in the same units: how far it moves the weight of the largest code.
    """

    steps: int = 100
    rate: float = 0.01
    scale_rate: float = 0.003

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise RecipeError(f"block_ap: steps is at least 1, not {self.steps}")
        for name in ("rate", "scale_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"block_ap: {name} is from 0 to 1, not {getattr(self, name)}")


def tune(
    block: nn.Module,
    calls: Sequence[BlockCall],
    targets: Sequence[Hidden],
    layers: Mapping[str, TunedLayer],
    options: Options,
) -> TuningResult:
    """Train one block; see `base.Tuning.tune`."""
    return improve(block, calls, targets, layers, _Weights(layers, options), options.steps)


class _Weights:
    """Dense weights of all layers, each with the change of the logarithms of its scales."""

    def __init__(self, layers: Mapping[str, TunedLayer], options: Options) -> None:
        self._layers, self._options = layers, options
        self._dense, self._changes = {}, {}
        for name, layer in layers.items():
            start = layer.quantized
            dense = start.dequantize() if layer.weight is None else layer.weight
            self._dense[name] = in_cells(dense.float(), start).requires_grad_()
            self._changes[name] = torch.zeros_like(start.scales, dtype=torch.float32).requires_grad_()

    def groups(self) -> list[dict[str, Any]]:
        rates = {
            name: self._options.rate * layer.quantized.scales.float().abs().mean().item()
            for name, layer in self._layers.items()
        }
        scale_rates = {name: self._options.scale_rate / -layer.scheme.code_min for name, layer in self._layers.items()}
        pairs = ((self._dense, rates), (self._changes, scale_rates))
        return [{"params": [tensors[name]], "lr": of[name]} for tensors, of in pairs for name in self._layers]

    def weights(self) -> dict[str, Float32[Tensor, "_ _"]]:
        found = {}
        for name, layer in self._layers.items():
            dtype, zeros = layer.quantized.scales.dtype, layer.quantized.zeros
            weight = fake_quantize(self._dense[name], self._stored(name), zeros, layer.scheme, dtype)
            found[f"{name}.weight"] = weight.T if layer.turned else weight
        return found

    def quantized(self) -> dict[str, QuantizedTensor]:
        found = {}
        for name, layer in self._layers.items():
            scales, zeros = self._stored(name).detach().to(layer.quantized.scales.dtype), layer.quantized.zeros
            codes = round_to_grid(self._dense[name].detach(), Grid(scales, zeros), layer.scheme)
            found[name] = QuantizedTensor(codes, scales, zeros)
        return found

    def keep_within(self) -> None:
        pass

    def _stored(self, name: str) -> Float32[Tensor, "rows groups"]:
        start = self._layers[name].quantized.scales
        return stored_scales(start.float() * self._changes[name].exp(), start.dtype)
