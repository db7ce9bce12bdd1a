"""Collects the statistics that methods need of some layers of a block, while the block runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmquant.errors import QuantizationError
from llmquant.statistics import find
from llmquant.statistics.base import LayerStatistics, Statistic
from llmquant.statistics.gradients import project


class Collector:
    """Collects what each of some layers of a block needs.

    Layers that read the same tensor (q/k/v, gate/up) share a statistic of it: who shares is seen in the first batch,
    and each later batch must agree.
    """

    def __init__(self, layers: Mapping[str, nn.Module], needs: Mapping[str, Collection[str]]) -> None:
        """Prepare to listen.

        Args:
            layers: modules inside one block, by their names.
            needs: names of the statistics to collect, for each of them.
        """
        modules = {statistic: find(statistic) for name in layers for statistic in needs[name]}
        self._layers = layers
        self._needs = {name: sorted(needs[name]) for name in layers}
        self._of_gradients = frozenset(name for name, module in modules.items() if module.OF == "gradients")
        self._modules = modules
        self._tokens: dict[str, int] = dict.fromkeys(layers, 0)
        # A layer and a statistic -> the layer that counts it; that layer and the statistic -> what it counted.
        self._leaders: dict[tuple[str, str], str] = {}
        self._counted: dict[tuple[str, str], Statistic] = {}
        self._taken: dict[tuple[str, str], Tensor] = {}
        # What tells an input of this batch from others -> the layer that counted it, and the input itself: while it is
        # held, no other tensor can get its address.
        self._seen: dict[tuple[object, ...], tuple[str, Tensor]] = {}
        self._outputs: list[tuple[str, Tensor]] = []
        self._batches = 0

    @contextmanager
    def attached(self, block: nn.Module) -> Iterator[None]:
        """Listen while `block`, which holds the layers, runs over its batches."""
        with ExitStack() as stack:
            for name, layer in self._layers.items():
                stack.callback(layer.register_forward_pre_hook(self._input_hook(name)).remove)
                if self._of_gradients.intersection(self._needs[name]):
                    stack.callback(layer.register_forward_hook(self._output_hook(name)).remove)
            stack.callback(block.register_forward_hook(self._end_batch).remove)
            stack.callback(self._seen.clear)
            stack.callback(self._outputs.clear)
            if self._of_gradients:
                stack.enter_context(torch.enable_grad())
            yield

    def forget(self) -> None:
        """Count nothing so far."""
        self._tokens = dict.fromkeys(self._tokens, 0)
        self._leaders, self._counted = {}, {}

    def counted(self) -> Collector:
        """What was counted, without the layers: it can be sent to another process."""
        bare = Collector({}, {})
        bare._tokens, bare._leaders, bare._counted = self._tokens, self._leaders, self._counted
        return bare

    def merge(self, other: Collector) -> None:
        """Count what `other` has counted of the same layers, on other batches.

        Raises:
            QuantizationError: if other layers share their inputs there.
        """
        for name, tokens in other._tokens.items():
            self._tokens[name] += tokens
        for (name, statistic), leader in other._leaders.items():
            if self._leaders.setdefault((name, statistic), leader) != leader:
                before = self._leaders[name, statistic]
                raise QuantizationError(f"{name} shared its input with {before}, then with {leader}")
        for key, statistic in other._counted.items():
            if key in self._counted:
                self._counted[key].merge(statistic)
            else:
                self._counted[key] = statistic

    def take(self, name: str) -> LayerStatistics:
        """Statistics of one layer; call once for each layer, so that each is freed after the last layer that shares it.

        Raises:
            QuantizationError: if no token reached the layer.
        """
        if self._tokens[name] == 0:
            raise QuantizationError(
                f"no calibration token reached {name}; where it belongs to an expert that is chosen rarely, use more "
                "calibration text; a layer that the model does not use on text alone (attention to an encoder, an "
                "adapter) needs a rule of its own with `rounding: {method: rtn}`, or `scheme: keep`"
            )
        return LayerStatistics({need: self._take(name, need) for need in self._needs[name]}, self._tokens[name])

    def _take(self, name: str, statistic: str) -> Tensor:
        leader = self._leaders.pop((name, statistic))
        counted = (leader, statistic)
        if counted in self._counted:
            self._taken[counted] = self._counted.pop(counted).take()
        shared = any(key[1] == statistic and other == leader for key, other in self._leaders.items())
        return self._taken[counted] if shared else self._taken.pop(counted)

    def _input_hook(self, name: str):
        def hook(_layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs = args[0].detach().reshape(-1, args[0].shape[-1])
            if not inputs.shape[0]:
                return  # an expert that no token chose; all empty tensors have the same address
            self._tokens[name] += inputs.shape[0]
            for statistic in self._needs[name]:
                if statistic in self._of_gradients:
                    continue
                leader, _ = self._seen.setdefault((statistic, *_identity(args[0])), (name, args[0]))
                if self._leaders.setdefault((name, statistic), leader) != leader:
                    before = self._leaders[name, statistic]
                    raise QuantizationError(f"{name} shared its input with {before}, then with {leader}")
                if leader == name:
                    self._add(name, statistic, inputs)

        return hook

    def _output_hook(self, name: str):
        def hook(_layer: nn.Module, _args: object, output: Tensor) -> Tensor:
            self._outputs.append((name, output if output.requires_grad else output.requires_grad_()))
            return output.clone()  # what the model may write to

        return hook

    def _end_batch(self, _block: nn.Module, _args: object, output: Any) -> None:
        self._seen.clear()
        outputs, self._outputs = self._outputs, []
        if not outputs:
            return
        loss = project(output if isinstance(output, Tensor) else output[0], seed=self._batches)
        self._batches += 1
        gradients = torch.autograd.grad(loss, [tensor for _, tensor in outputs], materialize_grads=True)
        for (name, _), gradient in zip(outputs, gradients, strict=True):
            for statistic in self._of_gradients.intersection(self._needs[name]) if gradient.numel() else ():
                self._leaders[name, statistic] = name
                self._add(name, statistic, gradient.reshape(-1, gradient.shape[-1]))

    @torch.no_grad()
    def _add(self, name: str, statistic: str, rows: Float[Tensor, "tokens features"]) -> None:
        if (name, statistic) not in self._counted:
            self._counted[name, statistic] = self._modules[statistic].start()
        self._counted[name, statistic].add(rows.float())


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors that hold the same values because they are the same memory, seen in the same way."""
    # A slice may begin where the whole begins, and a later write to the same memory makes another input of it.
    return tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride(), tensor.dtype
