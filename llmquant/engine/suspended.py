"""The forward of a model, stopped at each call of one of its blocks.

The model runs in a thread of its own that waits where a block is called. Whoever holds the `SuspendedForward` runs the
block, when its weights are there and as often as needed, and says what the model goes on with. Only one of all these
threads runs at a time, and the block itself runs in the caller's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch
from torch import nn

from llmquant.errors import QuantizationError


@dataclass(frozen=True, slots=True)
class Call:
    """What the model called a block with."""

    index: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module) -> Any:
        """What `block` returns for these arguments."""
        return block(*self.args, **self.kwargs)


class SuspendedForward:
    """One forward, stopped in front of a block.

    Attributes:
        call: the block that is called and its arguments; None once the forward has ended.
    """

    def __init__(self, forward: Callable[[], object]) -> None:
        self.call: Call | None = None
        self._forward: Callable[[], object] | None = forward
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._stops: SimpleQueue[Call | BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.forward = self  # pyright: ignore[reportAttributeAccessIssue]  # for `suspended`, which runs in it

    def start(self) -> None:
        """Run up to the first block.

        Raises:
            QuantizationError: if the system gives no thread; as `resume`.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            raise QuantizationError(
                f"calibration needs a thread for each batch, and the system gives no more ({error}); use fewer samples"
            ) from error
        self._wait()

    def resume(self, output: Any) -> None:
        """Let the called block return `output` and run up to the next one, or to the end.

        Raises:
            Exception: whatever the model raised on the way.
        """
        self.call = None
        self._answers.put(output)
        del output
        self._wait()

    def abandon(self) -> None:
        """End the forward where it stands and free what it holds; harmless if it has ended."""
        self.call = None
        if self._thread.is_alive():
            self._answers.put(_Abandoned())
            self._thread.join()

    def stop(self, call: Call) -> Any:
        """Wait, in the thread of the model, for what the block returns."""
        self._stops.put(call)
        del call
        answer = self._answers.get()
        if isinstance(answer, _Abandoned):
            raise answer
        return answer

    def _wait(self) -> None:
        stopped = self._stops.get()
        if isinstance(stopped, BaseException):
            raise stopped
        self.call = stopped

    def _run(self) -> None:
        forward, self._forward = self._forward, None
        assert forward is not None
        torch.set_num_threads(1)  # else each of these threads would start workers of its own
        end: BaseException | None = None
        try:
            with torch.no_grad():  # belongs to a thread
                forward()
        except _Abandoned:
            return
        except BaseException as error:  # noqa: BLE001  # the caller gets it
            end = error
        self._stops.put(end)


@contextmanager
def suspending(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Make calls of `blocks` stop the `SuspendedForward` they come from; from elsewhere they run as ever."""
    kept = [vars(block).get("forward") for block in blocks]
    for index, block in enumerate(blocks):
        block.forward = partial(_stop_or_run, index, block.forward)
    try:
        yield
    finally:
        for block, forward in zip(blocks, kept, strict=True):
            if forward is None:
                vars(block).pop("forward", None)  # the method of the class shows again
            else:
                block.forward = forward


def _stop_or_run(index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    owner = getattr(threading.current_thread(), "forward", None)
    if isinstance(owner, SuspendedForward):
        return owner.stop(Call(index, args, kwargs))
    return forward(*args, **kwargs)


class _Abandoned(BaseException):
    """Unwinds a model whose forward is not needed any more; no model catches it by accident."""
