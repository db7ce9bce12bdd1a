"""A model on one batch of windows, from any of its blocks on: what lies before was computed once and is given again.

A block that is not run returns what it returned before. Whether that is all that a model hands on is tried once: where
blocks share more than their outputs, everything is run each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llmquant.eval.scoring import logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Tails:
    """One batch through one model: the whole of it when it is made, then as often as wanted from a block on."""

    def __init__(self, model: PreTrainedModel, blocks: Sequence[nn.Module], ids: Tensor) -> None:
        self._model, self._blocks, self.ids = model, blocks, ids
        self._outputs: list[Any] = [None] * len(blocks)
        with _hooked(blocks, self._keep):
            self.logits = logits(model, ids)

    def from_block(self, block: int) -> Tensor:
        """Logits with all blocks in front of `block` as they were; 0 runs everything."""
        with _answering(self._blocks[:block], self._outputs):
            return logits(self._model, self.ids)

    def can_skip(self) -> bool:
        """Whether a run from the last block on is the whole run."""
        return torch.equal(self.from_block(len(self._blocks) - 1), self.logits)

    def _keep(self, place: int, output: Any) -> None:
        self._outputs[place] = output


@contextmanager
def _hooked(blocks: Sequence[nn.Module], keep: Callable[[int, Any], None]) -> Iterator[None]:
    hooks = [
        block.register_forward_hook(lambda _module, _args, output, place=place: keep(place, output))
        for place, block in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _answering(blocks: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """Let blocks return what they returned before."""
    kept = [vars(block).get("forward") for block in blocks]
    for block, output in zip(blocks, outputs, strict=False):
        block.forward = lambda *_args, _output=output, **_kwargs: _output
    try:
        yield
    finally:
        for block, forward in zip(blocks, kept, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                block.forward = forward
