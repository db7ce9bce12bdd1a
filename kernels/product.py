"""What is asked of a linear call, in one noun: `Product`; on every device the ops end in these fields.

weights       one prepared weight or several, which share their input
biases        none, or one (out_features,) in the dtype of x for each weight
out_features  of each weight
exact         16-bit activations; else 8-bit, where the kernels of the device have them
norm          (in_features,) weight of an RMSNorm of x that comes first, in float32; norm_eps is its epsilon
residual      (..., out_features) added to a single result
silu          the two weights are gate and up: the one result is silu(gate) * up
form          how the weights lie in their bytes, where the bytes do not say it (gpu/weight.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: How the ops take a product.
ASKED = "bool exact, Tensor? norm=None, float norm_eps=0., Tensor? residual=None, bool silu=False"


class Product(NamedTuple):
    """See the module docstring."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    out_features: Sequence[int]
    exact: bool = True
    norm: Tensor | None = None
    norm_eps: float = 0.0
    residual: Tensor | None = None
    silu: bool = False
    form: Sequence[int] = ()

    @property
    def widths(self) -> Sequence[int]:
        """The outputs of each result."""
        return self.out_features[:1] if self.silu else self.out_features

    def empty(self, x: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Room for the results: (..., width) each, in the dtype of x if no other is given."""
        return [x.new_empty((*x.shape[:-1], width), dtype=dtype or x.dtype) for width in self.widths]
