"""`Int8Linear`: a linear layer with 8-bit weights that quantizes its inputs to 8 bits too (W8A8).

Its parameters are those of a compressed-tensors file in the format int-quantized:

    weight        (out_features, in_features) int8
    weight_scale  (out_features, 1) float
    input_scale   (1,) float, if all inputs have the same scale; else each row of inputs gets its own
    bias          (out_features,) float, if the layer has one

What runs is the op `llmquant::linear_w8a8`, whose kernel for GPUs reads the tensors as they are; on the CPU a prepared
weight takes the place of `weight` and `weight_scale`, and `cpu_linear_w8a8` runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from llmquant.kernels.backend import is_plain, on_gpu_kernels, w8a8_name
from llmquant.kernels.cpu import native
from llmquant.kernels.cpu import ops as cpu_ops
from llmquant.kernels.ops.linear_w8a8 import OP
from llmquant.kernels.product import PackedWeight
from llmquant.nn.storage import PackedStorage, Stored, frozen
from llmquant.numerics.pack import pack, unpack
from llmquant.numerics.quantized import QuantizedTensor

_AS_STORED = "GPU kernels read the weight as it is stored"


@final
class Int8Linear(PackedStorage):
    """`x @ weight.T + bias` with integers on both sides; the weight is frozen.

    `exact` means nothing to it: the checkpoint says how inputs are quantized.
    """

    names: ClassVar[tuple[str, str, str]] = ("weight", "weight_scale", "weight_zero_point")  # the last is always None
    weight: nn.Parameter
    input_scale: nn.Parameter | None

    def _register(self, zeros: Callable[..., nn.Parameter]) -> None:
        if not self.scheme.activations:
            raise ValueError(f"Int8Linear is for 8-bit activations, as in w8a8-dynamic, not for {self.scheme}")
        self.weight = zeros(self.out_features, self.in_features, dtype=torch.int8)
        self.weight_scale = zeros(self.out_features, 1)
        self.register_parameter("weight_zero_point", None)
        self.register_parameter("input_scale", zeros(1) if self.scheme.activations == "static" else None)

    def take(self, quantized: QuantizedTensor) -> None:
        """Share a quantized weight, with a scale for each row of inputs.

        Raises:
            ValueError: if `quantized` does not fit the scheme.
        """
        wanted = (self.out_features, 1)
        fits = tuple(quantized.scales.shape) == wanted and quantized.zeros is None
        if self.scheme.activations != "dynamic" or not fits:
            raise ValueError(
                f"w8a8-dynamic has scales {list(wanted)} and no zeros; got {self.scheme} with scales "
                f"{list(quantized.scales.shape)} and {'no ' if quantized.zeros is None else ''}zeros"
            )
        self.weight, self.weight_scale = frozen(quantized.codes), frozen(quantized.scales)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x (..., in_features) of any float dtype, that of the bias if there is one."""
        if self.lent is not None:
            self.settle()
        prepared = self._buffers["weight_prepared"]  # not by attribute, as in PackedLinear
        if prepared is None or x.dtype not in native.FLOATS:
            weight, scale, _ = self.stored()
            return OP(x, weight, scale, self.bias, self.input_scale)
        if is_plain(x, self.bias):
            return cpu_ops.linear_w8a8(x, prepared, self.bias, self.out_features, self.input_scale)
        return torch.ops.llmquant.cpu_linear_w8a8.default(x, prepared, self.bias, self.out_features, self.input_scale)

    def _why_stay(self) -> str | None:
        return _AS_STORED if on_gpu_kernels(self.weight.device) else None

    def _restored(self) -> dict[str, Tensor]:
        restored = super()._restored()
        return restored | {"weight": unpack(restored["weight"], 8, self.in_features)}

    def _as_packed(self, stored: Stored) -> PackedWeight:
        weight, scale, _ = stored
        return PackedWeight(pack(weight.detach(), 8), scale, None, 8, self.in_features)

    def kernel_name(self) -> str:
        """What runs this layer now, such as "linear_w8a8: avx512vnni"."""
        prepared = self.weight_prepared
        name = w8a8_name(prepared is not None, (self.weight if prepared is None else prepared).device)
        return f"{name} ({self.unprepared})" if self.unprepared not in ("", _AS_STORED) else name
