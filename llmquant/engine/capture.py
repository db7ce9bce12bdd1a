"""What each decoder block is called with: the identity pass.

Every block is made to return its hidden states unchanged while it records its own arguments (masks, rotary tables,
layer-specific flags), so one cheap forward of the model gives the arguments of every block. Reusing the arguments of
block 0 for all blocks would be wrong for models whose masks differ by layer, such as Gemma 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from llmquant.errors import QuantizationError

TOKENS_PER_BATCH = 1024  # bounds the activations inside a block, whatever the number of samples


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments of one block for one batch, without the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Hidden states (batch, length, features) after `block`."""
        output = block(hidden, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


class BlockInputs:
    """Hidden states of every batch in front of the next block, and the arguments of all blocks.

    Attributes:
        hidden: for each batch (batch, length, features); views of one tensor that is overwritten block by block, since
            a fresh tensor for each batch and block would leave the heap full of holes.
    """

    def __init__(self, hidden: Sequence[Tensor], calls: list[list[Call]]) -> None:
        self.hidden, self._calls = hidden, calls

    def run(self, index: int, block: nn.Module) -> None:
        """Run block `index` on all batches and drop the outputs (hooks on its modules see the inputs)."""
        for hidden, call in zip(self.hidden, self._calls[index], strict=True):
            call.run(block, hidden)

    def advance(self, index: int, block: nn.Module) -> None:
        """Replace the hidden states by the outputs of block `index`."""
        for hidden, call in zip(self.hidden, self._calls[index], strict=True):
            hidden.copy_(call.run(block, hidden))
        self._calls[index].clear()


def capture(base_model: nn.Module, blocks: Sequence[nn.Module], windows: Tensor) -> BlockInputs:
    """Run the identity pass.

    Args:
        base_model: the model below its language-model head; everything but the blocks must have weights, and the first
            block too: it tells what a block returns.
        blocks: the decoder blocks, in order.
        windows: (samples, length) token ids.

    Raises:
        QuantizationError: if the model does not call each block once for each batch.
    """
    size = max(1, TOKENS_PER_BATCH // windows.shape[1])
    batches = windows.split(size)
    recorder = _Recorder(blocks, len(windows))
    with recorder.installed():
        for batch in batches:
            base_model(input_ids=batch, use_cache=False)
    if recorder.hidden is None or any(len(calls) != len(batches) for calls in recorder.calls):
        raise QuantizationError(
            f"the decoder blocks were not called once each ({[len(c) for c in recorder.calls]} calls for "
            f"{len(batches)} batches); this architecture needs its own calibration driver; use a data-free recipe"
        )
    return BlockInputs(recorder.hidden.split(size), recorder.calls)


class _Recorder:
    """Stands in for the forward of every block while the identity pass runs."""

    def __init__(self, blocks: Sequence[nn.Module], samples: int) -> None:
        self.hidden: Tensor | None = None
        self._samples, self._seen = samples, 0
        self.calls: list[list[Call]] = [[] for _ in blocks]
        self._blocks = blocks
        self._extras: tuple[Any, ...] | None = None  # what a block returns behind the hidden states, if a tuple

    @contextmanager
    def installed(self) -> Iterator[None]:
        self._learn_output = self._blocks[0].forward
        for index, block in enumerate(self._blocks):
            block.forward = partial(self._record, index)
        try:
            yield
        finally:
            for block in self._blocks:
                del block.forward  # the method of the class shows again

    def _record(self, index: int, *args: Any, **kwargs: Any) -> Any:
        states, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        self.calls[index].append(Call(args, kwargs))
        if index == 0:
            if self.hidden is None:
                output = self._learn_output(states, *args, **kwargs)
                self._extras = output[1:] if isinstance(output, tuple) else None
                self.hidden = states.new_empty(self._samples, *states.shape[1:])
            assert self.hidden is not None
            self.hidden[self._seen : self._seen + len(states)] = states
            self._seen += len(states)
        return states if self._extras is None else (states, *self._extras)
