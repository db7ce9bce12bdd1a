"""Tensors of a prepared layer in other hands, so that what is done to them in place counts.

A prepared layer makes the checkpoint's tensors for whoever asks, and its kernels do not read them. So each one that is
handed out is watched for as long as anybody can reach its memory, and the layer looks at it before its next use:

    handed out by name (`layer.weight_scale`)   its bytes are compared, which sees every edit, those through `.data` or
                                                numpy too, and costs the time of making the tensors
    as one of many (a state dict, parameters    its version is, which every in-place operation moves; nobody's memory is
    from before the layer was prepared)         held for it, since whole models leave this way when they are saved
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Lent:
    """One such tensor."""

    by_name = False  # it was handed out by itself, and its bytes tell whether it was changed

    def __init__(self, tensor: Tensor) -> None:
        self._memory: Tensor | None = tensor.detach()  # the same memory and version under a handle of our own
        self._version = _version(tensor)
        self._kept: Tensor | None = None
        self._follow(tensor)

    def _follow(self, tensor: Tensor) -> None:
        me = weakref.ref(self)  # no cycle: the memory has to go when the layer forgets it

        def gone(_: object) -> None:
            lent = me()
            if lent is None or lent._memory is None or lent.is_suspect():
                return
            if _uses(lent._memory) <= _USES_AT_DEATH:
                lent._memory = None

        self._tensor = weakref.ref(tensor, gone)

    def hand_out(self, *, by_name: bool) -> Tensor:
        """The tensor, the same as long as somebody holds it; by name it stays until it has been looked at."""
        tensor = self.now()
        if self._tensor() is None:
            tensor = tensor.detach()
            self._follow(tensor)
        if by_name:
            self.by_name, self._kept = True, tensor
        return tensor

    def now(self) -> Tensor:
        """As it is now; only for one that is alive."""
        tensor = self._tensor()
        tensor = self._memory if tensor is None else tensor
        assert tensor is not None
        return tensor

    def is_suspect(self) -> bool:
        """Whether it may have been changed."""
        return self._memory is not None and (self.by_name or _version(self._memory) != self._version)

    def rest(self) -> bool:
        """Go on from what it is now; returns whether anybody still can change it."""
        if self._memory is None:
            return False
        self._kept = None  # may end the last hold on it
        tensor = self._tensor()
        if tensor is not None:  # its `.data` may have been replaced
            self._memory = tensor.detach()
        del tensor
        self._version = _version(self._memory)
        return self._in_use()

    def _in_use(self) -> bool:
        assert self._memory is not None
        if self._tensor() is not None:
            return True
        return not self._memory.is_meta and _uses(self._memory) > _USES


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, NaN included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = _BITS[one.dtype.itemsize]
    return torch.equal(one.detach().view(bits), other.detach().view(bits))


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # inference tensors count no versions


def _uses(tensor: Tensor) -> int:
    """How many hold the memory of a tensor: tensors, views and numpy arrays. Nothing else tells."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


def _count() -> tuple[int, int]:
    """Uses that one tensor makes, the question included, and those seen while a second one is being deleted."""
    mine, seen = torch.empty(1), []
    other = mine.detach()
    watch = weakref.ref(other, lambda _: seen.append(_uses(mine)))
    del other
    assert watch() is None
    return _uses(mine), seen[0]


_USES, _USES_AT_DEATH = _count()
