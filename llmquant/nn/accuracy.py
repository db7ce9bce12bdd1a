"""Which kernels a model's packed layers run, and how accurately: "exact" or "fast".

"fast" quantizes activations to 8 bits. "exact" keeps 16 of them on the CPU (kernels/cpu/ops.py), and does not
quantize them at all on a GPU (kernels/gpu/launch.py).
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from torch import nn

from llmquant.nn.storage import PackedStorage

Accuracy = Literal["exact", "fast"]
ACCURACIES: tuple[Accuracy, ...] = ("exact", "fast")


def set_accuracy(model: nn.Module, accuracy: Accuracy) -> None:
    """Let all packed layers of a model compute in an accuracy.

    Those that run on the reference are always exact, and so are 8-bit weights on a GPU.

    Raises:
        ValueError: if the accuracy is another word.
    """
    if accuracy not in ACCURACIES:
        raise ValueError(f"the accuracy is {accuracy!r}; it can be {' or '.join(ACCURACIES)}")
    for layer in _layers(model):
        layer.exact = accuracy == "exact"


def accuracy_of(model: nn.Module) -> Accuracy | None:
    """The accuracy of a model's packed layers: "fast" if any of them computes so, None if there are none.

    Layers whose checkpoint asks for 8-bit activations do not count: they have no choice.
    """
    layers = [layer for layer in _layers(model) if not layer.scheme.activations]
    if not layers:
        return None
    return "exact" if all(map(_is_exact, layers)) else "fast"


def kernels_used(model: nn.Module) -> dict[str, int]:
    """How many packed layers each kernel runs, by the kernel's name; for reports."""
    return dict(Counter(layer.kernel_name() for layer in _layers(model)))


def _is_exact(layer: PackedStorage) -> bool:
    return layer.kernels is None or layer.kernels.is_exact(layer.scheme.bits, layer.exact)


def _layers(model: nn.Module) -> list[PackedStorage]:
    return [module for module in model.modules() if isinstance(module, PackedStorage)]
