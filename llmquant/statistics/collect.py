"""Statistics of the inputs of the layers in one block: H = X^T X / tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llmquant.errors import QuantizationError
from llmquant.statistics.base import LayerStatistics


class HessianCollector:
    """Accumulates the Hessians of some layers of a block while the block runs.

    Layers that read the same tensor (q/k/v, gate/up) share one matrix: who shares is seen in the first batch, and each
    later batch must agree.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._leader: dict[str, str] = {}
        self._hessians: dict[str, Tensor] = {}
        self._divided: set[str] = set()
        self._tokens: dict[str, int] = dict.fromkeys(layers, 0)
        # What tells an input of this batch from others -> the layer that counted it, and the input itself: while it is
        # held, no other tensor can get its address.
        self._seen: dict[tuple[object, ...], tuple[str, Tensor]] = {}

    @contextmanager
    def attached(self, block: nn.Module) -> Iterator[None]:
        """Listen while `block`, which holds the layers, runs over its batches."""
        handles = [layer.register_forward_pre_hook(self._hook(name)) for name, layer in self._layers.items()]
        handles.append(block.register_forward_hook(lambda *_: self._seen.clear()))
        try:
            yield
        finally:
            self._seen.clear()
            for handle in handles:
                handle.remove()

    def _hook(self, name: str):
        def hook(_layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs = args[0].reshape(-1, args[0].shape[-1])
            if not inputs.shape[0]:
                return  # an expert that no token chose; all empty tensors have the same address
            self._tokens[name] += inputs.shape[0]
            leader, _ = self._seen.setdefault(_identity(args[0]), (name, args[0]))
            if self._leader.setdefault(name, leader) != leader:
                raise QuantizationError(f"{name} shared its input with {self._leader[name]}, then with {leader}")
            if leader == name:
                self._add(name, inputs.float())

        return hook

    def _add(self, name: str, inputs: Tensor) -> None:
        hessian = self._hessians.get(name)
        if hessian is None:
            size = inputs.shape[1]
            hessian = self._hessians[name] = torch.zeros(size, size, device=inputs.device)
        hessian.addmm_(inputs.T, inputs)

    def take(self, name: str) -> LayerStatistics:
        """Statistics of one layer; call once for each layer, so that its matrix is freed after the last that shares it.

        Raises:
            QuantizationError: if no token reached the layer.
        """
        tokens = self._tokens[name]
        if tokens == 0:
            raise QuantizationError(
                f"no calibration token reached {name}; where it belongs to an expert that is chosen rarely, use more "
                "calibration text; a layer that the model does not use on text alone (attention to an encoder, an "
                "adapter) needs a rule of its own with `rounding: {method: rtn}`, or `scheme: keep`"
            )
        leader = self._leader.pop(name)
        hessian = self._hessians[leader]
        if leader not in self._leader.values():
            del self._hessians[leader]
        if leader not in self._divided:
            hessian.div_(tokens)
            self._divided.add(leader)
        return LayerStatistics(hessian=hessian, tokens=tokens)


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors that hold the same values because they are the same memory, seen in the same way."""
    # A slice may begin where the whole begins, and a later write to the same memory makes another input of it.
    return tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride(), tensor.dtype
