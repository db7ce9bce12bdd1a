"""What a transform is: a module with `NEEDS`, `Options`, `reads`, `why_not` and `fit`.

A transform looks at one decoder block and returns edits that leave what the model computes as it was, but suit the
rounding that follows better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from llmquant.models.edits import Edit
from llmquant.statistics.base import LayerStatistics


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder block.

    Attributes:
        name: in the model, such as "model.layers.3".
        module: with its weights as earlier transforms have left them, in float32.
    """

    name: str
    module: nn.Module

    def full(self, inner: str) -> str:
        """The name in the model of something inside the block."""
        return f"{self.name}.{inner}"


class Transform(Protocol):
    """A module of this package.

    Attributes:
        NEEDS: names of the statistics that the engine must collect for what `reads` names.
        Options: frozen keyword-only dataclass of the recipe keys it takes, all with defaults.
    """

    NEEDS: frozenset[str]
    Options: type[Any]

    def reads(self, block: Block) -> tuple[str, ...]:
        """Names in the model of the modules whose statistics `fit` wants to see. The block may have no weights."""
        ...

    def why_not(self, block: Block) -> str | None:
        """A sentence on why it leaves this block as it is; None if it does not. The block may have no weights."""
        ...

    def fit(self, block: Block, statistics: Mapping[str, LayerStatistics], options: Any) -> list[Edit]:
        """The edits of this block, by the statistics of each module that `reads` names.

        Raises:
            QuantizationError: if a weight or a statistic cannot be used.
        """
        ...
