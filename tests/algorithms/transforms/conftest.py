"""Running the parts of a model as the engine does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from llmquant.algorithms import transforms
from llmquant.algorithms.transforms.base import Block
from llmquant.models.edits import Edit, apply_edits
from llmquant.models.skeleton import decoder_blocks
from llmquant.statistics.collect import Collector

TOKENS = torch.arange(2, 66).view(2, 32)


class InFloat64(TorchFunctionMode):
    """What a model casts to float32, such as the inputs of its norms, stays in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        swapped = {key: self._widened(value) for key, value in (kwargs or {}).items()}
        return func(*map(self._widened, args), **swapped)

    @staticmethod
    def _widened(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value


@contextmanager
def in_float64() -> Iterator[None]:
    with InFloat64(), torch.no_grad():
        yield


def logits(model: PreTrainedModel, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits


def transformed(model: PreTrainedModel, name: str, tokens: Tensor = TOKENS, **options: Any) -> list[Edit]:
    """Edits of all blocks, which are applied one after the other, as the engine does."""
    method = transforms.find(name)
    path, blocks = decoder_blocks(model)
    edits: list[Edit] = []
    for index, module in enumerate(blocks):
        block = Block(f"{path}.{index}", module)
        layers = {layer: model.get_submodule(layer) for layer in method.reads(block)}
        collector = Collector(layers, dict.fromkeys(layers, method.NEEDS))
        with torch.no_grad(), collector.attached(module):
            model(input_ids=tokens)
        statistics = {layer: collector.take(layer) for layer in layers}
        found = method.fit(block, statistics, method.Options(**options))
        apply_edits(model, found)
        edits += found
    return edits
