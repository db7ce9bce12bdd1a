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
from llmquant.nn.storage import PackedStorage


@final
class PackedLinear(PackedStorage):
    """`x @ weight.T + bias` with a weight of packed integers; the weight is frozen.

    The weight is used as `scale * (code - zero)` in the dtype of the scale, cast to the dtype of `x`. So casting the
    module (`.to(torch.float16)`, `.half()`) rounds the scales once and for all, which changes the weights; cast back,
    they are not what they were. Moving it between devices changes nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x (..., in_features) of any float dtype, that of the bias if there is one."""
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
