"""`PackedLinear`: a linear layer that keeps its weight as packed integers.

One class for all integer formats. Its parameters have the names, shapes and dtypes of a compressed-tensors file, so a
state dict is a piece of a checkpoint and the other way round:

    weight_packed      (out_features, ceil(in_features * bits / 32)) int32
    weight_scale       (out_features, groups) float, or (1,) per tensor
    weight_zero_point  (ceil(out_features * bits / 32), groups) int32, or (1,) int8 per tensor; asymmetric schemes only
    weight_shape       (2,) int64: out_features, in_features
    bias               (out_features,) float, if the layer has one

What runs is the op `llmquant::linear_int<bits>`; its definition and kernels are in llmquant.kernels.linear_int.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmquant.kernels.dequantize import dequantize
from llmquant.kernels.linear_int import OPS, kernel_name
from llmquant.numerics.pack import pack, pack_zeros, packed_words, unpack, unpack_zeros
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme


class PackedLinear(nn.Module):
    """`x @ weight.T + bias` with a weight of packed integers; the weight is frozen.

    The weight is used as `scale * (code - zero)` in the dtype of the scale, cast to the dtype of `x`. So casting the
    module (`.to(torch.float16)`, `.half()`) rounds the scales once and for all, which changes the weights; cast back,
    they are not what they were. Moving it between devices changes nothing.

    Attributes:
        in_features: inputs.
        out_features: outputs.
        scheme: how the weight is stored.
    """

    weight_packed: nn.Parameter
    weight_scale: nn.Parameter
    weight_zero_point: nn.Parameter | None
    weight_shape: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scheme: Scheme,
        bias: bool = False,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
    ) -> None:
        """Make a layer of zeros, to be filled from a checkpoint; on the meta device it takes no memory.

        Args:
            in_features: inputs.
            out_features: outputs.
            scheme: an integer weight-only scheme.
            bias: whether the layer adds a bias.
            dtype: of scales and bias.
            device: of all parameters.

        Raises:
            ValueError: if the scheme is no packed one, or its group does not divide in_features.
        """
        super().__init__()
        if scheme.is_keep or scheme.activations:
            raise ValueError(f"PackedLinear holds packed integer weights such as int4-g128, not {scheme}")
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        groups = scheme.scale_shape(out_features, in_features)
        per_tensor = scheme.granularity == "tensor"

        def zeros(*shape: int, dtype: torch.dtype) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, dtype=dtype, device=device), requires_grad=False)

        self.weight_packed = zeros(out_features, packed_words(in_features, scheme.bits), dtype=torch.int32)
        self.weight_scale = zeros(*((1,) if per_tensor else groups), dtype=dtype)
        if scheme.symmetric:
            self.register_parameter("weight_zero_point", None)
        elif per_tensor:
            self.weight_zero_point = zeros(1, dtype=torch.int8)
        else:
            self.weight_zero_point = zeros(packed_words(out_features, scheme.bits), groups[1], dtype=torch.int32)
        shape = torch.tensor([out_features, in_features], dtype=torch.int64, device=device)
        self.weight_shape = nn.Parameter(shape, requires_grad=False)
        if bias:
            self.bias = zeros(out_features, dtype=dtype)
        else:
            self.register_parameter("bias", None)

    @classmethod
    def from_quantized(cls, quantized: QuantizedTensor, scheme: Scheme, bias: Tensor | None = None) -> PackedLinear:
        """Pack a quantized weight into a new layer, on the device of its codes.

        Args:
            quantized: codes (out_features, in_features) with scales and zeros; the scales keep their dtype.
            scheme: how `quantized` was made.
            bias: (out_features,), shared with the new layer and not copied.

        Raises:
            ValueError: if `quantized` does not fit the scheme.
        """
        codes, scales, zeros = quantized.codes, quantized.scales, quantized.zeros
        out_features, in_features = codes.shape
        layer = cls(in_features, out_features, scheme, dtype=scales.dtype, device="meta")
        wanted = scheme.scale_shape(out_features, in_features)
        if tuple(scales.shape) != wanted or (zeros is None) != scheme.symmetric:
            raise ValueError(
                f"{scheme} wants scales {list(wanted)} {'without' if scheme.symmetric else 'with'} zeros, got scales "
                f"{list(scales.shape)} {'without' if zeros is None else 'with'} zeros"
            )
        layer.weight_packed = _frozen(pack(codes, scheme.bits))
        layer.weight_scale = _frozen(scales.reshape(layer.weight_scale.shape).contiguous())
        if zeros is not None:
            per_tensor = scheme.granularity == "tensor"
            layer.weight_zero_point = _frozen(zeros.reshape(1) if per_tensor else pack_zeros(zeros, scheme.bits))
        layer.weight_shape = _frozen(torch.tensor([out_features, in_features], dtype=torch.int64, device=codes.device))
        layer.bias = None if bias is None else _frozen(bias.detach())
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: (..., in_features), any float dtype; that of the bias if there is one.

        Returns:
            (..., out_features) in the dtype of `x`.
        """
        op = OPS[self.scheme.bits]
        return op(x, self.weight_packed, self.weight_scale, self.weight_zero_point, self.bias)

    def quantized(self) -> QuantizedTensor:
        """The weight unpacked: codes (out_features, in_features) with scales and zeros as in `numerics`."""
        codes = unpack(self.weight_packed.detach(), self.scheme.bits, self.in_features)
        shape = self.scheme.scale_shape(self.out_features, self.in_features)
        scales, zeros = self.weight_scale.detach().reshape(shape), None
        if self.weight_zero_point is not None:
            stored = self.weight_zero_point.detach()
            per_tensor = self.scheme.granularity == "tensor"
            zeros = stored.reshape(shape) if per_tensor else unpack_zeros(stored, self.scheme.bits, self.out_features)
        return QuantizedTensor(codes, scales, zeros)

    def dequantize(self) -> Tensor:
        """The dense weight (out_features, in_features) in the dtype of the scales."""
        scale, zero = self.weight_scale.detach(), self.weight_zero_point
        return dequantize(self.weight_packed, scale, zero, self.scheme.bits, self.in_features, scale.dtype)

    def kernel_name(self) -> str:
        """What runs this layer where it lies now, such as "linear_int4: reference, avx2 unpack"."""
        return kernel_name(self.scheme.bits, self.weight_packed.device)

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, scheme={self.scheme}, bias={bias}"


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
