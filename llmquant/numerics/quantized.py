"""A quantized weight before it is packed: signed codes with their scales and zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """`weight ~ scales * (codes - zeros)`.

    Attributes:
        codes: (out_features, in_features) int8, in [-2^(bits-1), 2^(bits-1) - 1].
        scales: (out_features, groups), or (1, 1) for one scale per tensor; the dtype in which they are stored.
        zeros: like scales but int8, in code units; None for symmetric schemes.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None

    def to(self, device: torch.device | str) -> QuantizedTensor:
        """The same on a device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return QuantizedTensor(self.codes.to(device), self.scales.to(device), zeros)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out_features, in_features), computed in `dtype`, or in that of the scales."""
        scales = self.scales.to(dtype or self.scales.dtype)
        out_features, in_features = self.codes.shape
        groups = self.scales.shape[1]
        codes = self.codes.reshape(out_features, groups, in_features // groups).to(scales.dtype)
        if self.zeros is not None:
            codes = codes - self.zeros.unsqueeze(-1).to(scales.dtype)
        return (codes * scales.unsqueeze(-1)).reshape(out_features, in_features)
