"""The quantizer that keeps integer checkpoints of compressed-tensors packed, ours and other tools'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from llmquant.compat.quantizers import CompressedTensorsQuantizer
from llmquant.errors import CheckpointError
from llmquant.hf.find import NotPackable, check_config, find_packed, named_packed
from llmquant.hf.place import finish, place_dense, place_empty
from llmquant.hf.stored import check_packed_places, check_stored, read_headers
from llmquant.nn.storage import PackedStorage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PackedQuantizer(CompressedTensorsQuantizer):
    """Loads weights as they lie on disk into packed layers; saving writes the same tensors again.

    Attributes:
        made: how a model that was quantized in memory was made, as llmquant.json says it; None of one that was loaded.
    """

    made: Mapping[str, Any] | None = None

    def refuse_config(self, stored: Mapping[str, Any]) -> str | None:
        try:
            check_config(stored)
        except NotPackable as error:
            return str(error)
        return None

    def swap(self, model: PreTrainedModel, stored: Mapping[str, Any], files: Sequence[str] | None) -> str | None:
        try:
            tensors = None if files is None else read_headers(files)
            schemes = named_packed(model, stored) if tensors is None else find_packed(model, stored, list(tensors))
        except NotPackable as error:
            return str(error)
        place_empty(model, schemes, model.dtype)
        if tensors is not None:
            check_stored(model, tensors)
        return None

    def check_original(self, model: PreTrainedModel, files: Sequence[str]) -> None:
        if all(file.endswith(".safetensors") for file in files):
            check_packed_places(model, read_headers(files))

    def finish(self, model: PreTrainedModel) -> None:
        _check_shapes(model)
        finish(model)

    def make_dense(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        place_dense(model, dtype)


def _check_shapes(model: PreTrainedModel) -> None:
    """Compare the sizes that the checkpoint stores beside each packed weight with those of the layer."""
    for name, module in model.named_modules():
        shape = getattr(module, "weight_shape", None) if isinstance(module, PackedStorage) else None
        if shape is None or shape.is_meta:  # W8A8 has none; a layer on disk is not looked at
            continue
        wanted = [module.out_features, module.in_features]
        if shape.tolist() != wanted:
            raise CheckpointError(
                f"{name}.weight_shape says {shape.tolist()}, the layer has {wanted}; "
                "the weights were mixed up or damaged, fetch or write the checkpoint again"
            )
