"""What tuning is: a module with `Options` and `tune`.

Tuning sees a whole decoder block with its rounded weights, what it is called with and what it should return, and
changes the rounded weights so that it does, with gradients. What it should return is what it does in the model before
rounding, so that errors do not add up from block to block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

Hidden: TypeAlias = Float[Tensor, "_ _ hidden"]  # states of a batch of token sequences
# Calls something with the signature of the block for one batch; returns its hidden states.
BlockCall = Callable[[Callable[..., Any]], Hidden]


@dataclass(frozen=True, slots=True)
class TunedLayer:
    """One rounded layer of a block.

    Attributes:
        quantized: its weight as it was rounded.
        scheme: of that.
        turned: whether the module holds the weight as (in_features, out_features).
        weight: before it was rounded; None where that is not known.
    """

    quantized: QuantizedTensor
    scheme: Scheme
    turned: bool = False
    weight: Float[Tensor, "out in"] | None = None


@dataclass(frozen=True, slots=True)
class TuningResult:
    """What tuning made of a block.

    Attributes:
        layers: the weight of every layer that was given, changed or not.
        before: squared error of the block's output for a token, relative to the power of its target; the mean over
            the tokens of batches that were not tuned on.
        after: the same with `layers`; never larger.
    """

    layers: Mapping[str, QuantizedTensor]
    before: float
    after: float


class Tuning(Protocol):
    """A module of this package.

    Attributes:
        Options: frozen keyword-only dataclass of the recipe keys it takes, all with defaults.
    """

    Options: type[Any]

    def tune(
        self,
        block: nn.Module,
        calls: Sequence[BlockCall],
        targets: Sequence[Hidden],
        layers: Mapping[str, TunedLayer],
        options: Any,
    ) -> TuningResult:
        """Tune one block.

        Args:
            block: with float32 weights, those of `layers` as they dequantize; left as it is.
            calls: one for each batch, with what the block gets behind rounded blocks.
            targets: what the block returns in the model before rounding, for each of `calls`. They differ from its
                outputs by the errors of the blocks in front too.
            layers: by the names of modules inside the block.
            options: an instance of this module's `Options`.
        """
        ...
