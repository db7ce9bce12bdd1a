"""Both models block by block on the same tokens: the error of each quantized module, its own and what it inherits.

Own: the quantized module given what the baseline gives its own. Accumulated: the same module where it stands, behind
all quantized ones before it. Only one block's activations exist at a time, of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from llmquant.debugging.activations import ActivationStatistics, ChannelStatistics
from llmquant.debugging.twins import Twins
from llmquant.engine.capture import capture
from llmquant.nn.int8_linear import Int8Linear
from llmquant.progress import Progress


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near one tensor is to another over all tokens.

    Attributes:
        sqnr: signal to noise in dB, of sums of squares of the baseline and of the difference; None if they are equal.
        cosine: between them, all elements as one vector.
        largest: the largest difference.
    """

    sqnr: float | None
    cosine: float
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerErrors:
    """Errors of a quantized module's outputs.

    Attributes:
        accumulated: None where the module saw other tokens in the two models, as experts do.
        activations: of its inputs, in the baseline and in the quantized model.
        gone: output channels that are zero for all tokens in the quantized model, and not in the baseline.
    """

    name: str
    block: int
    own: Agreement
    accumulated: Agreement | None
    activations: ActivationStatistics
    quantized_activations: ActivationStatistics
    gone: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """`blocks` are the hidden states behind each block."""

    layers: tuple[LayerErrors, ...]
    blocks: tuple[Agreement, ...]


@torch.inference_mode()
def compare_layers(twins: Twins, windows: Tensor, progress: Progress) -> Comparison:
    """Walk both models over windows (samples, length) of token ids.

    Raises:
        QuantizationError: if the model cannot be run block by block.
    """
    models = (twins.baseline, twins.quantized)
    ours, theirs = (twins.blocks(model) for model in models)
    windows = windows.to(twins.baseline.device)
    progress.stage("layers", len(ours), unit="blocks")
    layers, blocks = [], []
    with (
        capture(twins.baseline.base_model, ours, windows) as before,
        capture(twins.quantized.base_model, theirs, windows) as after,
    ):
        for index, (one, two) in enumerate(zip(ours, theirs, strict=True)):
            meters = _meters(twins, index)
            states = _Sums()
            with _watched(meters.values(), 0), _watched(meters.values(), 1):
                for hidden, other in zip(before.advancing(index, one), after.advancing(index, two), strict=True):
                    states.add(hidden, other)
                    for meter in meters.values():
                        meter.compare()
            blocks.append(states.agreement())
            layers += [meter.errors(name, index) for name, meter in meters.items() if meter.calls]
            progress.step()
    return Comparison(tuple(layers), tuple(blocks))


def _meters(twins: Twins, block: int) -> dict[str, _Meter]:
    """For each quantized module of a block; those that are loaded as one have the same inputs, so one looks at them."""
    meters: dict[str, _Meter] = {}
    for unit in twins.units:
        names = [name for name in unit.modules if name in twins.schemes or not twins.schemes]
        for name in names if unit.block == block else ():
            one, two = twins.baseline.get_submodule(name), twins.quantized.get_submodule(name)
            leader = meters.get(names[0]) if len(unit.modules) > 1 and not unit.rewritten else None
            meters[name] = _Meter(one, two, leader)
    return meters


def _input_scale(module: nn.Module) -> float | None:
    scale = module.input_scale if isinstance(module, Int8Linear) else None
    return None if scale is None else float(scale)


class _Sums:
    """What agreement takes, added up in float64."""

    def __init__(self) -> None:
        self.signal = self.noise = self.other = self.product = self.largest = 0.0

    def add(self, reference: Tensor, changed: Tensor) -> None:
        one, two = (each.reshape(-1, each.shape[-1]) for each in (reference, changed))
        difference = two - one
        self.signal += _product(one, one)
        self.other += _product(two, two)
        self.product += _product(one, two)
        self.noise += _product(difference, difference)
        self.largest = max(self.largest, float(difference.abs().max())) if difference.numel() else self.largest

    def agreement(self) -> Agreement:
        norms = math.sqrt(self.signal * self.other)
        sqnr = 10 * math.log10(max(self.signal, 1e-300) / self.noise) if self.noise else None
        return Agreement(sqnr, self.product / norms if norms else 1.0, self.largest)


def _product(one: Tensor, two: Tensor) -> float:
    """Sum of products: of a row in float32, of all rows in float64."""
    return float(torch.linalg.vecdot(one.float(), two.float()).double().sum())


@dataclass
class _Meter:
    """One module of both models."""

    one: nn.Module
    two: nn.Module
    leader: _Meter | None  # looks at the same inputs
    own: _Sums = field(default_factory=_Sums)
    accumulated: _Sums = field(default_factory=_Sums)
    comparable: bool = True
    calls: int = 0
    seen: tuple[list[tuple[Tensor, Tensor]], ...] = field(default_factory=lambda: ([], []))

    def __post_init__(self) -> None:
        scale = _input_scale(self.two)
        self.inputs = self.leader.inputs if self.leader else (ChannelStatistics(scale), ChannelStatistics(scale))
        self.outputs: list[Tensor | None] = [None, None]

    def compare(self) -> None:
        """Add what both modules saw in one batch."""
        first, second = self.seen
        self.calls += len(first)
        for x, y in first:
            self.own.add(y, self.two.forward(x))  # not a call, which the hooks would see
        for inputs, each in zip(self.inputs, self.seen, strict=True):
            for x, _ in each if self.leader is None else ():
                inputs.add(x)
        shapes = [[y.shape for _, y in each] for each in self.seen]
        self.comparable = self.comparable and shapes[0] == shapes[1]
        if self.comparable:
            for (_, y), (_, z) in zip(first, second, strict=True):
                self.accumulated.add(y, z)
        for place, each in enumerate(self.seen):
            for _, y in each:
                largest = y.abs().reshape(-1, y.shape[-1]).amax(0)
                known = self.outputs[place]
                self.outputs[place] = largest if known is None else torch.maximum(known, largest)
            each.clear()

    def errors(self, name: str, block: int) -> LayerErrors:
        before, after = self.outputs
        gone = () if before is None or after is None else ((after == 0) & (before > 0)).nonzero().view(-1).tolist()
        return LayerErrors(
            name=name,
            block=block,
            own=self.own.agreement(),
            accumulated=self.accumulated.agreement() if self.comparable else None,
            activations=self.inputs[0].statistics(),
            quantized_activations=self.inputs[1].statistics(),
            gone=tuple(gone),
        )


@contextmanager
def _watched(meters: Iterable[_Meter], place: int) -> Iterator[None]:
    """Keep inputs and outputs of the meters' modules in one of the models."""
    modules = [((meter.one, meter.two)[place], meter.seen[place]) for meter in meters]
    hooks = [module.register_forward_hook(_keeper(seen)) for module, seen in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _keeper(seen: list[tuple[Tensor, Tensor]]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    return lambda _module, args, output: seen.append((args[0], output))
