"""`Contender`: a model that takes part when several are timed side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.nn.accuracy import Accuracy, set_accuracy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Contender:
    """A model that takes part. One model may do so in both accuracies, and with both caches."""

    name: str  # for the report
    model: PreTrainedModel
    accuracy: Accuracy | None = None  # of its kernels; None leaves them as they are
    static: bool = False  # whether the cache has a fixed size; on a CUDA device decoding is a CUDA graph then
    dense: bool | None = None  # whether others are compared with it; None: if it has no packed layers

    def choose(self) -> None:
        """Let the model compute in its accuracy."""
        if self.accuracy is not None:
            set_accuracy(self.model, self.accuracy)
