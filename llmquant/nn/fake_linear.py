"""`FakeLinear`: a linear layer that is trained as it will be read once its weight (and its inputs) are rounded.

With a W8A8 scheme the forward is the op `llmquant::linear_w8a8` itself, so sums of integers are exact here too.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmquant.errors import QuantizationError
from llmquant.kernels.ops.linear_w8a8 import OP, quantize_tokens
from llmquant.nn.fake_weight import MOMENTUM, FakeWeight, recomputing
from llmquant.numerics.stored_scale import as_stored


@final
class FakeLinear(FakeWeight, nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride]  # may have no weight
    """`x @ weight.T + bias` with the weight of the packed layer that it becomes, and gradients.

    `input_scale` (1,) float32 is that of all inputs, of static W8A8 schemes; it is 0 until inputs were seen, follows
    their largest magnitude (a moving average) while training, and stays once ranges are frozen.
    """

    input_scale: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None, turned: bool = False) -> None:
        """A layer without a weight, which `hold` or `share` gives it."""
        with torch.device("meta"):
            super().__init__(in_features, out_features, bias=False)
        self.turned = turned
        self.register_parameter("bias", bias)
        self.register_buffer("input_scale", None)

    def observe_inputs(self) -> None:
        """Keep one scale for all inputs, as a static W8A8 scheme has it."""
        assert self.weight_scale is not None
        self.input_scale = torch.zeros(1, device=self.weight_scale.device)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to input (..., in_features)."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        if self.scheme.activations is None or not self.fake_quant:
            return functional.linear(input, self.fake_weight(dtype), self.bias)
        weight, bias = self.fake_weight(torch.float32), None if self.bias is None else self.bias.to(dtype)
        return _LinearW8A8.apply(input.to(dtype), weight, self.scales().detach(), bias, self._scale_of(input))  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def _scale_of(self, x: Tensor) -> Tensor | None:
        """The scale of all inputs as it will be stored, after having seen these; None if each row has its own."""
        scale = self.input_scale
        if scale is None:
            return None
        if self.training and not (self.ranges_frozen or recomputing()):
            now = (x.abs().amax().float() / 127.5).clamp(min=torch.finfo(torch.float32).tiny)
            scale.copy_(torch.where(scale == 0, now, torch.lerp(scale, now, MOMENTUM)))
        elif not bool(scale):
            raise QuantizationError("the scale of inputs is not known; run the model on text in training mode first")
        return as_stored(scale, self.scale_dtype)


class _LinearW8A8(torch.autograd.Function):
    """The op on the codes of a weight that is on its grid; gradients as if nothing had been rounded."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor | None
    ) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x, weight, input_scale)
        return OP(x, (weight / scale).round_().to(torch.int8), scale, bias, input_scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, input_scale = ctx.saved_tensors
        codes, steps = quantize_tokens(x, input_scale)
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = gradient @ weight.to(gradient.dtype)
            if input_scale is not None:  # a clipped input reaches nothing
                to_x = to_x * (x.abs() <= 128 * input_scale)
        if ctx.needs_input_grad[1]:
            read = (codes * steps).to(gradient.dtype).flatten(0, -2)
            to_weight = (gradient.flatten(0, -2).T @ read).float()
        if ctx.needs_input_grad[3]:
            to_bias = gradient.flatten(0, -2).sum(0)
        return to_x, to_weight, None, to_bias, None
