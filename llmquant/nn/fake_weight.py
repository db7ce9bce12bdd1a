"""`FakeWeight`: what layers have whose weight is trained as it will be read once it is rounded.

fake_linear.py and fake_embedding.py are thin layers on it. Their tensors, by name:

    weight               float32, what is trained, in the shape and under the name of the dense layer; not with
                         "scales-only"
    weight_codes         (out_features, in_features) int8, with "scales-only" in place of `weight`
    weight_scale         (rows, groups) float32, what the scales started from; with "minmax" and "moving-average" as now
    weight_zero_point    (rows, groups) int8, of asymmetric schemes
    weight_scale_change  (rows, groups) float32, with "lsq" and "scales-only": the logarithm of how the scales changed
    lora_a, lora_b       (rank, in_features) and (out_features, rank) float32, with `adapt`: what is trained in place of
                         `weight`, to which `lora_b @ lora_a * lora_scale` is added before rounding (low_rank.py)

The dequantized weight is computed in the dtype in which the scales will be stored, so it is the converted layer's bit
for bit. What is trained is in float32 also in a model of 16 bits, whose weights are too coarse for small steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llmquant.errors import QuantizationError
from llmquant.nn.low_rank import Term, changed, made_again
from llmquant.numerics.fake_quant import dequantize, fake_quantize, in_cells, stored_scales
from llmquant.numerics.grid import Grid, choose_grid, round_to_grid
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

NAMES = ("weight", "weight_codes", "weight_scale", "weight_zero_point", "weight_scale_change", "lora_a", "lora_b")
MOMENTUM = 0.05  # of a moving average of ranges


class FakeWeight(nn.Module):
    """A weight with the grid it is rounded to; abstract: a layer says what it computes.

    Attributes:
        scheme: of the rounded weight.
        ranges: how the scales move: "frozen", "minmax", "moving-average", "lsq" or "scales-only" (recipe/qat.py).
        scale_dtype: in which they will be stored, and readers dequantize.
        dense_dtype: of the layer that this one stands for.
        turned: the parameter is (in_features, out_features), as that of a Conv1D.
        fake_quant: False computes with the weight as it is, for steps that come before rounding.
        ranges_frozen: True once ranges no longer move.
        tied: another layer, which `share` was called with, has these tensors too.
        adapters: low-rank changes that others train, such as an adapter of peft around this layer.
    """

    scheme: Scheme
    ranges: str
    scale_dtype: torch.dtype
    dense_dtype: torch.dtype
    turned: bool = False
    fake_quant: bool = True
    ranges_frozen: bool = False
    weight: Tensor | None
    weight_codes: Tensor | None
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    weight_scale_change: nn.Parameter | None
    lora_a: nn.Parameter | None
    lora_b: nn.Parameter | None
    lora_scale: float = 0.0
    tied: bool = False
    adapters: Callable[[], list[Term]] | None = None

    def hold(self, start: QuantizedTensor, scheme: Scheme, ranges: str, weight: nn.Parameter) -> None:
        """Take a dense weight, and the codes and scales that it starts from.

        `weight` moves to where it rounds to these codes, no farther than it must, so the first forward gives the
        weight that was rounded however cleverly.
        """
        self.scheme, self.ranges, self.scale_dtype, self.dense_dtype = scheme, ranges, start.scales.dtype, weight.dtype
        self.register_buffer("weight_scale", start.scales.detach().float().clone())
        self.register_buffer("weight_zero_point", None if start.zeros is None else start.zeros.clone())
        self.register_parameter("lora_a", None)
        self.register_parameter("lora_b", None)
        change = torch.zeros_like(self.weight_scale) if ranges in ("lsq", "scales-only") else None
        self.register_parameter("weight_scale_change", None if change is None else nn.Parameter(change))
        if ranges == "scales-only":
            self.register_parameter("weight", None)
            self.register_buffer("weight_codes", start.codes.clone())
            return
        self.register_buffer("weight_codes", None)
        self.register_parameter("weight", nn.Parameter(weight.detach().float().clone()))
        with torch.no_grad():
            matrix = self.base()
            matrix.copy_(in_cells(matrix, start))

    def share(self, other: FakeWeight) -> None:
        """Share all tensors with another layer, as tied weights do."""
        self.scheme, self.ranges, self.scale_dtype = other.scheme, other.ranges, other.scale_dtype
        self.dense_dtype, self.lora_scale, self.tied = other.dense_dtype, other.lora_scale, True
        for name in NAMES:
            if name in other._parameters:
                self.register_parameter(name, other._parameters[name])
            else:
                self.register_buffer(name, other._buffers[name])

    def adapt(self, rank: int, alpha: float, generator: torch.Generator) -> None:
        """Train a low-rank change of the weight in its place; it is 0 at first (Hu et al. 2021, section 4.1)."""
        base = self.base()
        out_features, in_features = base.shape
        start = torch.rand(rank, in_features, generator=generator).mul_(2).sub_(1) / math.sqrt(in_features)
        self.lora_a = nn.Parameter(start.to(base.device))
        self.lora_b = nn.Parameter(torch.zeros(out_features, rank, device=base.device))
        self.lora_scale = alpha / rank

    def terms(self) -> list[Term]:
        """The low-rank changes of the weight that count now."""
        own = [] if self.lora_a is None or self.lora_b is None else [Term(self.lora_b, self.lora_a, self.lora_scale)]
        return own + self.adapters() if self.adapters else own

    def base(self) -> Tensor:
        """The weight without low-rank changes, as (out_features, in_features)."""
        assert self.weight is not None
        return self.weight.T if self.turned else self.weight

    def matrix(self) -> Tensor:
        """What is rounded, as (out_features, in_features)."""
        return changed(self.base(), self.terms())

    def scales(self) -> Tensor:
        """(rows, groups) float32, as they will be stored; with a gradient where they learn, 0 once they are frozen."""
        change = self.weight_scale_change
        if change is None:
            return stored_scales(self.weight_scale, self.scale_dtype)
        # Not no gradient: data-parallel training waits for that of every parameter that it knows.
        change = _ScaledGradient.apply(change, 0.0 if self.ranges_frozen else self._gradient_scale())
        return stored_scales(self.weight_scale * change.exp(), self.scale_dtype)

    def fake_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight (out_features, in_features) as the converted layer has it, in `dtype`, with gradients."""
        if self.weight_codes is not None:
            return dequantize(self.weight_codes, self.scales(), self.weight_zero_point, self.scale_dtype, dtype)
        if not self.fake_quant:
            return self.matrix().to(dtype)
        self.follow()
        scales, zeros, base, terms = self.scales(), self.weight_zero_point, self.base(), self.terms()
        matrix = changed(base, terms)
        with made_again(matrix, base, terms):
            return fake_quantize(matrix, scales, zeros, self.scheme, self.scale_dtype, dtype)

    @torch.no_grad()
    def quantized(self) -> QuantizedTensor:
        """What `fake_weight` computes with, as it is stored.

        Raises:
            QuantizationError: if weights or scales are not finite.
        """
        scales = self.scales().to(self.scale_dtype)
        if not bool(scales.isfinite().all()):
            raise QuantizationError("scales are not finite, training has diverged; lower the learning rate of scales")
        if self.weight_codes is not None:
            return QuantizedTensor(self.weight_codes, scales, self.weight_zero_point)
        matrix = self.matrix()
        if not bool(matrix.isfinite().all()):
            raise QuantizationError("weights are not finite, training has diverged; lower the learning rate")
        codes = round_to_grid(matrix, Grid(scales, self.weight_zero_point), self.scheme)
        return QuantizedTensor(codes, scales, self.weight_zero_point)

    @torch.no_grad()
    def follow(self) -> None:
        """In training, move the grid to where the weights are now, if the ranges are such."""
        moves = self.ranges in ("minmax", "moving-average") and not self.ranges_frozen
        if not (moves and self.training) or recomputing():
            return
        now = choose_grid(self.matrix(), self.scheme, scale_dtype=self.scale_dtype)
        scales = now.scales.float()
        if self.ranges == "moving-average":  # of magnitudes: the sign says on which side the longer end is
            scales = scales.sign() * torch.lerp(self.weight_scale.abs(), scales.abs(), MOMENTUM)
        self.weight_scale.copy_(scales)
        if self.weight_zero_point is not None and now.zeros is not None:
            self.weight_zero_point.copy_(now.zeros)

    def _gradient_scale(self) -> float:
        """1/sqrt(N Qp), N weights to a scale (LSQ, section 2.2)."""
        elements = self.base().numel() if self.weight_codes is None else self.weight_codes.numel()
        return 1 / math.sqrt(elements / self.weight_scale.numel() * self.scheme.code_max)

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        return f"{super().extra_repr()}, scheme={self.scheme}, ranges={self.ranges}"


def recomputing() -> bool:
    """Whether a backward pass runs, which computes activations again that were thrown away, by the same grid."""
    return torch._C._current_graph_task_id() >= 0


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient * ctx.factor, None
