"""`swap_packed`: keeping a model packed that was loaded without llmquant."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmquant.errors import CheckpointError
from llmquant.hf.find import NotPackable, named_packed
from llmquant.hf.place import finish, place_empty
from llmquant.spec import Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def swap_packed(model: PreTrainedModel) -> PreTrainedModel:
    """Keep a model packed that plain transformers has loaded with compressed-tensors.

    For models that were loaded before `import llmquant`; otherwise this has happened already and nothing is done.

    The model, as `from_pretrained` returned it, is changed in place.

    Raises:
        CheckpointError: if the model is not one of ours to keep packed, or has run a forward, which made it dense.
    """
    from llmquant.compat.quantizers import CompressedTensorsConfig, mark_as_packed, remove_decompression, stays_packed
    from llmquant.hf.packed import PackedQuantizer

    if stays_packed(model):
        return model
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        raise CheckpointError("the model is not quantized; load a checkpoint with packed weights")
    if not any(map(_is_packed, model.modules())):
        raise CheckpointError(
            "the model has no packed weights any more: compressed-tensors makes them dense at the first forward; load "
            "the model again and call swap_packed before it runs, or import llmquant before loading"
        )
    stored = json.loads(json.dumps(config.to_dict() if not isinstance(config, dict) else config, default=str))
    try:
        named = named_packed(model, stored)
    except NotPackable as error:
        raise CheckpointError(f"the model cannot be kept packed: {error}") from error
    for name, scheme in named.items():
        if _is_packed(model.get_submodule(name)):
            _take_over(model, name, scheme)
    finish(model)
    remove_decompression(model)
    mark_as_packed(model, PackedQuantizer(CompressedTensorsConfig(stored)))
    return model


def _is_packed(module: nn.Module) -> bool:
    """Whether compressed-tensors has not made the weight dense yet."""
    weight = getattr(module, "weight", None)
    return hasattr(module, "weight_packed") or (isinstance(weight, Tensor) and weight.dtype == torch.int8)


def _take_over(model: nn.Module, name: str, scheme: Scheme) -> None:
    loaded = model.get_submodule(name)
    scales = loaded.weight_scale
    assert isinstance(scales, Tensor)
    place_empty(model, {name: scheme}, scales.dtype)
    packed = model.get_submodule(name)
    for parameter, _ in list(packed.named_parameters()):
        setattr(packed, parameter, getattr(loaded, parameter))
