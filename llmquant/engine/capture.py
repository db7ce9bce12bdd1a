"""What each decoder block is called with: the model's own forward, stopped at every block.

Each batch is one forward of the model that waits in front of a block until the block has its weights (`suspended`).
What the block returns is what the model goes on with, so whatever it passes from one block to another besides the
hidden states (the state of a router, chosen keys, shared keys and values), and whatever it computes between blocks, is
what it is in use. Nothing here knows what a block is given or returns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from llmquant.engine.suspended import Call, SuspendedForward, suspending
from llmquant.errors import QuantizationError

TOKENS_PER_BATCH = 1024  # bounds the activations inside a block, whatever the number of samples


class BlockInputs:
    """The model in front of its next block, once for each batch. A context manager: leaving it ends the forwards.

    Attributes:
        between: modules outside the blocks that the model uses behind its first block; the others have done their work.
    """

    def __init__(self, blocks: Sequence[nn.Module], between: frozenset[nn.Module]) -> None:
        self.between = between
        self._blocks = blocks
        self._forwards: list[SuspendedForward] = []
        self._outputs: list[Any] = []
        self._ending = ExitStack()
        self._ending.enter_context(suspending(blocks))

    def __enter__(self) -> BlockInputs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """End all forwards and give the blocks their own again."""
        for forward in self._forwards:
            forward.abandon()
        self._ending.close()

    @property
    def hidden(self) -> list[Tensor]:
        """Hidden states of each batch in front of the next block, or behind the last."""
        states = self._outputs or [(f.call.args, f.call.kwargs) for f in self._forwards if f.call]
        return [_first_tensor(value) for value in states]

    def begin(self, base_model: nn.Module, batch: Tensor) -> None:
        """Run one more batch up to the first block."""
        forward = SuspendedForward(lambda: base_model(input_ids=batch, use_cache=False))
        self._forwards.append(forward)
        forward.start()
        _require_call(forward, 0)

    def run(self, index: int, block: nn.Module) -> None:
        """Run block `index` on all batches and drop the outputs (hooks on its modules see the inputs)."""
        for call in self.calls(index):
            call(block)

    def calls(self, index: int) -> list[Callable[[Callable[..., Any]], Tensor]]:
        """For each batch, what calls a block as the model calls block `index`, and returns its hidden states.

        It is called with copies: what it writes into its arguments does not count, it will run again.
        """
        return [partial(_call_apart, _require_call(forward, index)) for forward in self._forwards]

    def advance(self, index: int, block: nn.Module) -> None:
        """Let the model go on with the outputs of block `index`, up to the next block.

        Raises:
            QuantizationError: if that is not the block that the model called.
        """
        for _ in self.advancing(index, block):
            pass

    def advancing(self, index: int, block: nn.Module) -> Iterator[Tensor]:
        """As `advance`, batch by batch; gives the hidden states that the block returned for each.

        They are the caller's: what the model then does to its own is not seen in them.

        Raises:
            QuantizationError: as `advance`.
        """
        last = index + 1 == len(self._blocks)
        for forward in self._forwards:
            output = _require_call(forward, index).run(block)
            hidden = _first_tensor(output).clone()
            if last:
                self._outputs.append(output)
                forward.abandon()
            else:
                forward.resume(output)
            yield hidden


def capture(base_model: nn.Module, blocks: Sequence[nn.Module], windows: Tensor) -> BlockInputs:
    """Run the model up to its first block.

    `blocks` are the decoder blocks of `base_model`, which is the model below its language-model head. Everything but
    the blocks must have weights, and the first block too: it tells what a block returns. `windows` (samples, length)
    are token ids.

    Raises:
        QuantizationError: if the model does not call each block once, in order, or gives no way to find out.
    """
    size = max(1, TOKENS_PER_BATCH // windows.shape[1])
    threads = torch.get_num_threads()
    try:
        inputs = BlockInputs(blocks, _rehearse(base_model, blocks, windows[:1]))
        try:
            for batch in windows.split(size):
                inputs.begin(base_model, batch)
        except BaseException:
            inputs.close()
            raise
    finally:
        torch.set_num_threads(threads)  # the forwards' own setting is the default of threads that start later
    return inputs


def _rehearse(base_model: nn.Module, blocks: Sequence[nn.Module], window: Tensor) -> frozenset[nn.Module]:
    """Run one window with blocks that return their hidden states unchanged, before hours are spent on the real ones.

    Returns the modules outside the blocks that the model uses behind its first block.

    Raises:
        QuantizationError: if the blocks are not called once each and in order.
    """
    order: list[int] = []
    later: set[nn.Module] = set()
    inside = {module for block in blocks for module in block.modules()}
    hooks = [
        module.register_forward_pre_hook(lambda module, _: later.add(module) if order else None)
        for module in base_model.modules()
        if module not in inside
    ]
    forward = SuspendedForward(lambda: base_model(input_ids=window, use_cache=False))
    try:
        with suspending(blocks):
            forward.start()
            template = None
            while forward.call is not None and forward.call.index == len(order):
                call = forward.call
                order.append(call.index)
                states = _first_tensor((call.args, call.kwargs))
                if template is None:
                    with torch.no_grad():
                        template = (call.run(blocks[call.index]),)
                forward.resume(_with_states(template[0], states))
            order += [forward.call.index] if forward.call else []
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise QuantizationError(
            f"{type(base_model).__name__} cannot be run block by block: blocks that change nothing end in "
            f"{type(error).__name__} ({error}); use a recipe that needs no calibration"
        ) from error
    finally:
        forward.abandon()
        for hook in hooks:
            hook.remove()
    if order != list(range(len(blocks))):
        raise QuantizationError(
            f"{type(base_model).__name__} does not call its {len(blocks)} decoder blocks once each and in order, but "
            f"{_shortened(order)}; statistics of this architecture need a driver of its own: use a recipe that needs "
            "no calibration"
        )
    return frozenset(later)


def _call_apart(call: Call, block: Callable[..., Any]) -> Tensor:
    copies: dict[int, Any] = {}
    return _first_tensor(block(*_apart(call.args, copies), **_apart(call.kwargs, copies)))


def _require_call(forward: SuspendedForward, index: int) -> Call:
    if forward.call is None or forward.call.index != index:
        got = "ended" if forward.call is None else f"called block {forward.call.index}"
        raise QuantizationError(
            f"the model should call decoder block {index} next, but {got}; statistics of this architecture need a "
            "driver of its own: use a recipe that needs no calibration"
        )
    return forward.call


def _first_tensor(value: Any) -> Tensor:
    """The first tensor of arguments or outputs, which in all models is the hidden states."""
    if isinstance(value, Tensor):
        return value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    for child in children:
        if isinstance(child, (Tensor, tuple, list, dict)) and len(child):
            return _first_tensor(child)
    raise TypeError(f"no tensor in a {type(value).__name__}")


def _with_states(output: Any, states: Tensor) -> Any:
    """An output of a block with `states` for its hidden states."""
    if isinstance(output, Tensor):
        return states
    return type(output)([states, *output[1:]])


def _apart(value: Any, copies: dict[int, Any]) -> Any:
    """A copy of a block's arguments that shares no memory with them; what is one object stays one."""
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, Tensor):
        copied: Any = value.clone()
    elif type(value) is dict:
        copied = {key: _apart(item, copies) for key, item in value.items()}
    elif type(value) in (list, tuple):
        copied = type(value)(_apart(item, copies) for item in value)
    elif isinstance(value, (nn.Module, FunctionType)):
        return value
    else:
        copied = copy.deepcopy(value)
    copies[id(value)] = copied
    return copied


def _shortened(order: list[int]) -> str:
    shown = ", ".join(map(str, order[:20]))
    return f"[{shown}{', ...' if len(order) > 20 else ''}]"
