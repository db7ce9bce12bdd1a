"""Which kernels a model runs, and in which accuracy.

The fast kernels of the CPU quantize activations inside: `exact` to 16 bits, whose error is far below that of bfloat16,
`fast` to 8 bits. A loss is that of the weights' format only if it is measured in `exact`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

from llmquant.kernels.cpu import native
from llmquant.kernels.cpu.native import KERNELS_VARIABLE
from llmquant.kernels.gpu import runtime
from llmquant.nn.accuracy import Accuracy, set_accuracy
from llmquant.nn.storage import PackedStorage


@contextmanager
def loading_for(kernel: Literal["reference"] | None) -> Iterator[None]:
    """Let models that are loaded inside the block run on this kernel, which is settled when a layer gets its weight.

    Args:
        kernel: "reference" for plain torch; None changes nothing.
    """
    if kernel is None:
        yield
        return
    before = {name: os.environ.get(name) for name in (KERNELS_VARIABLE, runtime.VARIABLE)}
    os.environ.update(dict.fromkeys(before, kernel))
    native.wanted.cache_clear()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        native.wanted.cache_clear()


@contextmanager
def in_accuracy(model: nn.Module, accuracy: Accuracy) -> Iterator[None]:
    """Let packed layers compute in an accuracy inside the block, and as before after it, whatever was set meanwhile."""
    before = [(layer, layer.exact) for layer in _packed(model)]
    set_accuracy(model, accuracy)
    try:
        yield
    finally:
        for layer, exact in before:
            layer.exact = exact


def _packed(model: nn.Module) -> list[PackedStorage]:
    return [module for module in model.modules() if isinstance(module, PackedStorage)]
