"""A quantized weight before it is packed: signed codes with their scales and zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """`weight ~ scales * (codes - zeros)`.

    Attributes:
        codes: in [-2^(bits-1), 2^(bits-1) - 1].
        scales: a row for each output, or (1, 1) for one scale per tensor; in the dtype in which they are stored.
        zeros: in code units; None for symmetric schemes.
    """

    codes: Int8[Tensor, "out in"]
    scales: Float[Tensor, "rows groups"]
    zeros: Int8[Tensor, "rows groups"] | None = None

    def to(self, device: torch.device | str) -> QuantizedTensor:
        """The same on a device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return QuantizedTensor(self.codes.to(device), self.scales.to(device), zeros)

    def dequantize(self, dtype: torch.dtype | None = None) -> Float[Tensor, "out in"]:
        """The weight, computed in `dtype`, or in that of the scales."""
        scales = self.scales.to(dtype or self.scales.dtype)
        out_features, in_features = self.codes.shape
        groups = self.scales.shape[1]
        codes = self.codes.reshape(out_features, groups, in_features // groups).to(scales.dtype)
        if self.zeros is not None:
            codes = codes - self.zeros.unsqueeze(-1).to(scales.dtype)
        return (codes * scales.unsqueeze(-1)).reshape(out_features, in_features)
