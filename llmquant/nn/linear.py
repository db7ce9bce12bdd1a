"""`PackedLinear`: a linear layer that keeps its weight as packed integers, one class for all integer formats.

What runs is the op `llmquant::linear_int<bits>`, whose definition is in kernels/ops/linear_int.py, or the fast kernels
of the device once the layer is prepared (storage.py).
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from llmquant.kernels.backend import reference_name
from llmquant.kernels.cpu import native
from llmquant.kernels.ops.linear_int import OPS
from llmquant.nn.storage import PackedStorage, frozen
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme


@final
class PackedLinear(PackedStorage):
    """`x @ weight.T + bias` with a weight of packed integers; the weight is frozen.

    The weight is used as `scale * (code - zero)` in the dtype of the scale, cast to the dtype of `x`. So casting the
    module (`.to(torch.float16)`, `.half()`) rounds the scales once and for all, which changes the weights; cast back,
    they are not what they were. Moving it between devices changes nothing.
    """

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
        super().__init__(in_features, out_features, scheme)
        self.register_packed(bias, dtype, device)

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
        out_features, in_features = quantized.codes.shape
        layer = cls(in_features, out_features, scheme, dtype=quantized.scales.dtype, device="meta")
        layer.take(quantized)
        layer.bias = None if bias is None else frozen(bias.detach())
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: (..., in_features), any float dtype; that of the bias if there is one.

        Returns:
            (..., out_features) in the dtype of `x`.
        """
        if self.lent is not None:
            self.settle()
        # Not by attribute where it is known to be there: nn.Module looks for it in Python.
        weight, kernels, parameters = self._buffers["weight_prepared"], self.kernels, self._parameters
        bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401 - which would ask for both
        kind = x.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):  # as nn.Linear does
            x = x.to(torch.get_autocast_dtype(kind)) if x.dtype == torch.float32 else x
            bias = None if bias is None else bias.to(x.dtype)
        if weight is None or kernels is None or x.dtype not in native.FLOATS:
            return OPS[self.scheme.bits](x, *self.stored(), bias)
        return kernels.linear(x, weight, bias, self.out_features, self.exact)

    def kernel_name(self) -> str:
        """What runs this layer now, such as "linear_int4: avx512vnni, exact"."""
        if self.weight_prepared is not None and self.kernels is not None:
            return self.kernels.name(self.weight_prepared, self.scheme.bits, self.exact)
        reference = reference_name(self.scheme.bits, self.weight_packed.device)
        return f"{reference} ({self.unprepared})" if self.unprepared else reference
