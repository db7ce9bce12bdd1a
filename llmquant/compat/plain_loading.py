"""What plain transformers, without llmquant, does with a compressed-tensors checkpoint of an architecture.

Written for and tested with transformers 5.23, like everything in this folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, build_glob_alternation
from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION
from transformers.utils.quantization_config import QuantizationMethod

from llmquant.compat.config import stored_dtype

_METHOD = QuantizationMethod.COMPRESSED_TENSORS
_REPLACED = "it replaces the experts of this class by others, and leaves those random"
_SPLIT = "it cannot split a stored tensor into this one and others where anything is packed"
_UPCAST = "it keeps whatever is named '{word}' in float32, its scales too, and then computes in two dtypes"
_MERGED = "it looks for packed tensors where it merges this one from several, and drops what is not packed"


def lost_parameters(model: PreTrainedModel) -> dict[str, str]:
    """The parameters that do not survive plain transformers where they are not packed, and why."""
    found = {}
    for name, module in model.named_modules():
        patch = MODULES_TO_PATCH_FOR_QUANTIZATION.get(type(module).__name__)
        if patch and _METHOD in patch["quantization_methods"]:
            found |= {f"{name}.{key}": _REPLACED for key, _ in module.named_parameters()}
    for converter in _dequantizing(model):
        targets = [re.compile(f"{target}$") for target in converter._original_target_patterns]
        reason = _MERGED if len(targets) == 1 else _SPLIT
        for name, _ in model.named_parameters():
            if any(target.search(name) for target in targets):
                found.setdefault(name, reason)
    return found


def upcast_scales(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """The layers that plain transformers computes in float32 once they are packed, between others in 16 bits, and why.

    It compares the words of `_keep_in_fp32_modules` with every part of a stored name: "scale" is in `weight_scale`.
    """
    dtype = stored_dtype(model.config)
    plan = model._get_dtype_plan(dtype) if dtype else {}
    if not plan:
        return {}
    words, groups, _ = build_glob_alternation(list(plan))
    found = {}
    for name in names:
        meant, packed = words.search(f"{name}.weight"), words.search(f"{name}.weight_scale")
        if packed and not meant:
            found[name] = _UPCAST.format(word=groups[str(packed.lastgroup)])
    return found


def _dequantizing(model: PreTrainedModel) -> Iterator[Any]:
    """The converters to which the quantizer adds its own operation, as its `update_weight_conversions` chooses them."""
    for converter in get_model_conversion_mapping(model):
        if isinstance(converter, WeightConverter) and all(
            source.endswith(".weight") for source in converter._original_source_patterns
        ):
            yield converter


def initialisations(model: nn.Module) -> Iterator[Any]:
    """What transformers calls for each module to give it random weights, unless all of them are read from a file.

    Of packed layers it believes that they are not, so it is called for them, and for all that holds none itself.

    Yields functions without arguments; none for a module that is no model of transformers.
    """
    if not isinstance(model, PreTrainedModel):
        return

    def walk(module: nn.Module, owner: Any) -> Iterator[Any]:
        for child in module.children():
            yield from walk(child, child if isinstance(child, PreTrainedModel) else owner)
        yield lambda: owner._init_weights(module)

    with torch.no_grad():
        yield from walk(model, model)
