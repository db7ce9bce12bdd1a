"""What a rounding is told about the inputs of its layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """What calibration measured on the inputs of one layer.

    Attributes:
        hessian: (in_features, in_features) float32, X^T X / tokens of its inputs X (tokens, in_features); symmetric.
            Algorithms read it only, so layers that share their inputs can share it.
        tokens: how many inputs were seen.
    """

    hessian: Tensor | None = None
    tokens: int = 0
