"""Low-rank changes of a weight that is rounded with them: `weight + scale * b @ a` (LoRA, arXiv 2106.09685).

The sum is made at every forward pass, and again for the backward pass instead of being kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor


class Term(NamedTuple):
    """One low-rank change."""

    b: Tensor  # (out_features, rank)
    a: Tensor  # (rank, in_features)
    scale: float


def changed(weight: Tensor, terms: Sequence[Term]) -> Tensor:
    """`weight` (out_features, in_features) with all changes, in its dtype; `weight` itself if there are none."""
    with torch.autocast(weight.device.type, enabled=False):  # the same numbers whoever asks
        for b, a, scale in terms:
            weight = torch.addmm(weight, b.to(weight.dtype), a.to(weight.dtype), alpha=scale)
    return weight


def made_again(result: Tensor, weight: Tensor, terms: Sequence[Term]) -> AbstractContextManager[object]:
    """Where operations do not keep `result`, which is `changed(weight, terms)`, for their backward pass."""
    if not terms:
        return nullcontext()
    place = result.data_ptr()

    def pack(tensor: Tensor) -> Tensor | None:
        return None if tensor.data_ptr() == place and tensor.shape == weight.shape else tensor

    def unpack(kept: Tensor | None) -> Tensor:
        with torch.no_grad():
            return changed(weight, terms) if kept is None else kept

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
