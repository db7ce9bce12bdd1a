"""Calibrated quantization of a model that is loaded already, with the same numbers as the streaming run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmquant.algorithms.rounding.base import LayerResult
from llmquant.compat.loading import release
from llmquant.compat.remote_code import runs_remote_code
from llmquant.engine.blocks import quantize_blocks, replace_weight
from llmquant.engine.layer import dense_weight, quantize_layer
from llmquant.engine.streaming import keep_embeddings_small
from llmquant.models.skeleton import build_skeleton, decoder_blocks
from llmquant.recipe.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantize_loaded(model: PreTrainedModel, plan: Plan, windows: Tensor) -> dict[str, LayerResult]:
    """Quantize the embeddings and the layers inside the decoder blocks of `model`, which itself is not changed.

    The work is done in a float32 skeleton that borrows the weights of one block at a time, exactly as the streaming
    run does, so both give the same integers.

    Args:
        model: in the dtype of its checkpoint.
        plan: what becomes of each module.
        windows: (samples, length) calibration token ids.

    Returns:
        the result of each of them by module name.
    """
    skeleton = build_skeleton(model.config, trust_remote_code=runs_remote_code(model)).float()
    path, blocks = decoder_blocks(skeleton)
    rows = [[row for row in plan.quantized if row.matrix.block == i] for i in range(len(blocks))]
    weights = _BorrowedWeights(skeleton, model, path, plan.inventory.dtype)
    weights.load_outside()
    sink = _Results()
    for row in plan.quantized:
        if row.matrix.table:
            weight = model.get_parameter(f"{row.name}.weight")
            result = sink.results[row.name] = quantize_layer(row, weight, None, plan.inventory.dtype)
            replace_weight(skeleton.get_submodule(row.name), dense_weight(row, result.quantized))
    quantize_blocks(
        skeleton, skeleton.base_model, list(blocks), rows, windows,
        scale_dtype=plan.inventory.dtype, weights=weights, sink=sink,
    )  # fmt: skip
    return sink.results


class _BorrowedWeights:
    def __init__(self, skeleton: nn.Module, model: nn.Module, path: str, dtype: torch.dtype) -> None:
        self._skeleton, self._model, self._path, self._dtype = skeleton, model, f"{path}.", dtype
        self._buffers = skeleton.state_dict().keys()

    def load_outside(self) -> None:
        keep_embeddings_small(self._skeleton, self._dtype)
        for name, module in self._skeleton.named_modules():
            if not f"{name}.".startswith(self._path):
                self._copy(name, module, recurse=False)

    def load(self, index: int) -> None:
        name = f"{self._path}{index}"
        self._copy(name, self._skeleton.get_submodule(name), recurse=True)

    def release(self, index: int) -> None:
        release(self._skeleton.get_submodule(f"{self._path}{index}"))

    def _copy(self, prefix: str, module: nn.Module, *, recurse: bool) -> None:
        for name, parameter in list(module.named_parameters(recurse=recurse)):
            source = self._model.get_parameter(f"{prefix}.{name}" if prefix else name)
            owner, _, leaf = name.rpartition(".")
            value = nn.Parameter(source.detach().to(parameter.dtype), requires_grad=False)
            setattr(module.get_submodule(owner), leaf, value)
        for name, buffer in list(module.named_buffers(recurse=recurse)):
            full = f"{prefix}.{name}" if prefix else name
            if full in self._buffers:
                buffer.copy_(self._model.get_buffer(full))


class _Results:
    def __init__(self) -> None:
        self.results: dict[str, LayerResult] = {}

    def finished(self, index: int) -> Mapping[str, Tensor] | None:  # noqa: ARG002
        return None

    def emit(self, index: int, results: Mapping[str, tuple[LayerResult, float]]) -> None:  # noqa: ARG002
        self.results |= {name: result for name, (result, _) in results.items()}
