"""The quantizer that keeps integer checkpoints of compressed-tensors packed, ours and other tools'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from llmquant.compat.quantizers import CompressedTensorsQuantizer
from llmquant.errors import CheckpointError
from llmquant.hf.swap import NotPackable, check_config, find_packed, finish, place_dense, place_empty
from llmquant.layers.packed_linear import PackedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PackedQuantizer(CompressedTensorsQuantizer):
    """Loads weights as they lie on disk into packed layers; saving writes the same tensors again."""

    def refuse_config(self, stored: Mapping[str, Any]) -> str | None:
        try:
            check_config(stored)
        except NotPackable as error:
            return str(error)
        return None

    def swap(self, model: PreTrainedModel, stored: Mapping[str, Any], files: Sequence[str] | None) -> str | None:
        try:
            keys = None if files is None else tensor_names(files)
            schemes = find_packed(model, stored, keys)
        except NotPackable as error:
            return str(error)
        place_empty(model, schemes, model.dtype)
        if keys is not None:
            require(model, keys, _packed_parameters(model))
        return None

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self.packed:
            finish(model)
        return super()._process_model_after_weight_loading(model, **kwargs)

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        dtype = dtype or model.dtype
        # save_pretrained leaves the name of the dtype in the config.
        place_dense(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        return model


def tensor_names(files: Sequence[str]) -> list[str]:
    """Names of all tensors in safetensors files.

    Raises:
        NotPackable: if there is a file of another kind.
    """
    names = []
    for file in files:
        if not file.endswith(".safetensors"):
            raise NotPackable(f"{file} is not a safetensors file")
        with safe_open(file, framework="pt") as opened:
            names += opened.keys()
    return names


def require(model: PreTrainedModel, keys: Sequence[str], wanted: Iterable[str]) -> None:
    """Check that a checkpoint has all `wanted` parameters of `model`, the names in the checkpoint being `keys`.

    transformers would fill what is missing with random numbers and only warn.

    Raises:
        CheckpointError: naming the first that is missing.
    """
    from llmquant.compat.loading import map_keys

    missing = sorted(set(wanted) - set(map_keys(model, keys).parameter.values()))
    if missing:
        raise CheckpointError(
            f"the checkpoint lacks {missing[0]}" + (f" and {len(missing) - 1} more tensors" if missing[1:] else "")
        )


def _packed_parameters(model: PreTrainedModel) -> list[str]:
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, PackedLinear)]
    names = {f"{name}.{parameter}" for name, layer in layers for parameter, _ in layer.named_parameters()}
    return sorted(names - model.all_tied_weights_keys.keys())
