"""What a statistic is, and what methods are told about a layer.

Legend: features are in_features for inputs, out_features for gradients of outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """What calibration measured on one layer.

    Attributes:
        values: each statistic by its name; the file of that name in this package says what it is. They are read only,
            so layers that share their inputs can share them.
        tokens: how many inputs were seen.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: int = 0

    def to(self, device: torch.device) -> LayerStatistics:
        """The same on a device."""
        return LayerStatistics({name: value.to(device) for name, value in self.values.items()}, self.tokens)

    def get(self, name: str) -> Tensor | None:
        """One statistic; None where it was not collected."""
        return self.values.get(name)


class Statistic(Protocol):
    """One statistic of one layer (or of several that read the same inputs) while it is collected."""

    def add(self, rows: Float[Tensor, "tokens features"]) -> None:
        """Count more rows, at least one, all on one device."""
        ...

    def merge(self, other: Statistic) -> None:
        """Count what `other`, of the same module, has counted: the result is that of all rows together."""
        ...

    def take(self) -> Float[Tensor, "*shape"]:
        """The value. Called once, at the end; it may use up what was counted."""
        ...


class StatisticModule(Protocol):
    """A module of this package.

    Attributes:
        OF: what it is a statistic of: the inputs of a layer, or the gradients of its outputs, see `gradients`.
    """

    OF: Literal["inputs", "gradients"]

    def start(self) -> Statistic:
        """A statistic that has counted nothing yet."""
        ...
