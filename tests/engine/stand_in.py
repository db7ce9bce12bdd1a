"""A device that this machine does not have: tensors that lie in the CPU's memory and say that they are elsewhere.

Operations refuse operands of two devices, as a GPU does, and everything computes on the CPU by the kernels that it uses
for its own tensors, so results are the CPU's to the bit.
It is made for tests on machines without a GPU: whatever a test forgets to move, or moves for nothing, shows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CARD = torch.device("lazy:0")  # a type that torch knows and that nothing here has
_MOVING = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OnCard(Tensor):
    """A tensor on the stand-in."""

    behind: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnCard:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=CARD, requires_grad=inner.requires_grad,
        )  # fmt: skip
        made.behind = inner
        return made

    # With these two `Module.to` swaps parameters instead of setting their data, which `behind` would not notice.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["behind"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> OnCard:
        return OnCard(inner["behind"])

    def data_ptr(self) -> int:
        """The address of the memory behind it."""
        return self.behind.data_ptr()

    def tolist(self) -> Any:
        """The numbers of the memory behind it."""
        return self.behind.tolist()

    # Attention chooses its kernel by the type of the device before it gets to `__torch_dispatch__`. For an unknown one
    # it takes the plain formula, which rounds otherwise than the kernel of the CPU.
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and not torch.is_grad_enabled():
            return _run(torch.ops.aten.scaled_dot_product_attention.default, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """For what makes tensors from nothing, or moves a tensor of the CPU there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    asked = kwargs.get("device")
    here = any(isinstance(tensor, OnCard) for tensor in tensors)
    if here and func not in _MOVING:
        _refuse_two_devices(func, tensors)
    onto = (here if asked is None else torch.device(asked).type == CARD.type) or (
        func is torch.ops.aten.copy_.default and isinstance(args[0], OnCard)
    )
    if asked is not None and torch.device(asked).type == CARD.type:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(_inner, args), tree_map(_inner, kwargs)
    result = func(*args, **kwargs)
    in_place = func._schema.is_mutable and isinstance(tensors[0] if tensors else None, OnCard)
    if in_place and func._schema.arguments[0].alias_info is not None and result is args[0]:
        return tensors[0]
    return tree_map(lambda leaf: OnCard(leaf) if isinstance(leaf, Tensor) and onto else leaf, result)


def _refuse_two_devices(func: Any, tensors: list[Tensor]) -> None:
    # A tensor of the CPU with one element is a number, as everywhere in torch.
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnCard) and tensor.dim()]
    if elsewhere:
        raise RuntimeError(f"{func}: operands on {CARD} and {elsewhere[0].device}, {tuple(elsewhere[0].shape)}")


def _inner(leaf: Any) -> Any:
    return leaf.behind if isinstance(leaf, OnCard) else leaf


@contextmanager
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The stand-in, for this thread and those that start while it is there."""
    run: Callable[[threading.Thread], None] = threading.Thread.run

    def run_there(thread: threading.Thread) -> None:
        with _Mode():
            run(thread)

    with monkeypatch.context() as patch, _Mode():
        patch.setattr(threading.Thread, "run", run_there)
        yield CARD
