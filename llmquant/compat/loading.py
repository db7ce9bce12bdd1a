"""Reading checkpoint tensors into a model that lives on the meta device, a few modules at a time.

transformers 5 renames and merges checkpoint keys while loading (a mapping per architecture). These are internal
functions, written for and tested with 5.23; they are touched in this folder and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from llmquant.errors import CheckpointError
from llmquant.words import dtype_name


@dataclass(frozen=True, slots=True)
class KeyMap:
    """Where each checkpoint key goes in the model.

    Attributes:
        parameter: checkpoint key to parameter or buffer name; keys the model does not have are absent.
        merged: the checkpoint keys that are split or merged on the way, so that key and parameter are not one to one.
        splits: some key becomes several parameters, of which `parameter` names the first.
        reached: all parameters and buffers that come from the checkpoint, every part of what is split included.
    """

    parameter: Mapping[str, str]
    merged: frozenset[str]
    splits: bool
    reached: frozenset[str]


# Float8 is no dtype of weights that are not quantized; cast to one it would mean other numbers.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def map_keys(model: PreTrainedModel, keys: Iterable[str]) -> KeyMap:
    """Map checkpoint keys to the names of `model` as transformers does when it loads.

    Raises:
        CheckpointError: if two keys mean the same parameter; which of them transformers takes is chance.
    """
    known = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    several = {p: t.target_patterns for t in converters if len(t.target_patterns) > 1 for p in t.source_patterns}
    prefix = model.base_model_prefix
    parameter, merged, reached, splits = {}, set(), set(), False
    taken: dict[str, str] = {}
    for key in keys:
        name, pattern = rename_source_key(key, renamings, converters, prefix, known)
        if name not in known and key in known:
            name, pattern = rename_source_key(key, [], [], prefix, known)
        if name in known:
            parameter[key] = name
            reached.add(name)
            if pattern is not None:
                merged.add(key)
            other = taken.setdefault(name, key)
            if other != key and not {key, other} <= merged:
                raise CheckpointError(
                    f"the checkpoint holds {name} twice, as {other} and as {key}; find out which of the two is right, "
                    "and remove the other"
                )
            if pattern in several:
                splits = True
                first, *others = several[pattern]
                reached |= {name.replace(first, other) for other in others} & known.keys()
    return KeyMap(parameter, frozenset(merged), splits, frozenset(reached))


def assembled(model: PreTrainedModel) -> set[str]:
    """The parameters that transformers merges from, or splits off, checkpoint tensors; no tensor is one of them alone.

    It is what a checkpoint that `save_pretrained` writes holds, known without one.
    """
    converters = [t for t in get_model_conversion_mapping(model) if isinstance(t, WeightConverter)]
    targets = [re.compile(f"{target}$") for converter in converters for target in converter._original_target_patterns]
    return {name for name, _ in model.named_parameters() if any(target.search(name) for target in targets)}


def expected(model: PreTrainedModel) -> set[str]:
    """The parameters and buffers that transformers wants to find in a checkpoint; of tied ones the owner."""
    exempt = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    names = model.state_dict().keys() - model.all_tied_weights_keys.keys()
    return {name for name in names if not any(pattern.search(name) for pattern in exempt)}


def may_be_new(model: PreTrainedModel) -> frozenset[str]:
    """What a class adds to the model of a checkpoint, such as the `score` of a classifier.

    Nothing is new to the class that was stored; and neither the base model nor what predicts tokens ever is.
    """
    base = getattr(model, model.base_model_prefix, None)
    if type(model).__name__ in (model.config.architectures or ()) or base is None:
        return frozenset()
    head = model.get_output_embeddings()
    old = [base] if head is None else [base, head]
    kept = {id(tensor) for module in old for tensor in (*module.parameters(), *module.buffers())}
    everything = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return frozenset(name for name, tensor in everything if id(tensor) not in kept)


def check_complete(model: PreTrainedModel, key_map: KeyMap) -> None:
    """Check that every parameter of `model` comes from the checkpoint, itself or as the one it is tied to.

    Raises:
        CheckpointError: naming the first that does not; transformers would fill it with random numbers.
    """
    if key_map.splits:
        return  # the map does not name all parameters; loading a block finds what is missing
    present = set(key_map.parameter.values())
    tied = model.all_tied_weights_keys
    for name, _ in model.named_parameters():
        partners = {tied.get(name), *(other for other, owner in tied.items() if owner == name)}
        if name not in present and not partners & present:
            raise CheckpointError(
                f"the checkpoint has no tensor for {name}, which config.json describes; the weights and the "
                "config do not belong together, or files are missing"
            )


class _LazyTensor:
    """Stands in for a safetensors slice: read when transformers asks for it, so that one tensor is held at a time."""

    def __init__(self, read: Callable[[str], Tensor], name: str) -> None:
        self._read, self._name = read, name

    def __getitem__(self, index: object) -> Tensor:
        return self._read(self._name)


def load_keys(
    model: PreTrainedModel,
    keys: Iterable[str],
    read: Callable[[str], Tensor],
    device: torch.device | str = "cpu",
    *,
    converted: bool = True,
) -> None:
    """Read the given checkpoint keys into the parameters of `model`, in the dtype the parameters have on meta.

    `read` gives the tensor of a key. `converted` is False where keys are the names of parameters, such as those of a
    model in memory.

    Raises:
        CheckpointError: if a tensor has the wrong shape or cannot be converted.
    """
    # Converters collect tensors while they work, so every call needs its own.
    mapping: Any = get_model_conversion_mapping(model) if converted else []  # declared narrower there than it is
    config = LoadStateDictConfig(device_map={"": str(device)}, weight_mapping=mapping)
    lazy = {key: _LazyTensor(lambda name: read(name).to(device), key) for key in keys}
    with no_progress_bar():
        info, _ = convert_and_load_state_dict_in_model(model, lazy, config)
    if info.mismatched_keys:
        name, got, wanted = sorted(info.mismatched_keys)[0]
        raise CheckpointError(
            f"{name} has shape {tuple(got)} in the checkpoint, but config.json describes {tuple(wanted)}; "
            "the weights and the config do not belong together"
        )
    if info.conversion_errors:
        name, message = sorted(info.conversion_errors.items())[0]
        raise CheckpointError(f"transformers could not convert {name}: {message}")


def same_kind(stored: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether numbers of one dtype mean the same in another: floats of 16 bits or more, or no floats at all."""
    return stored in FLOATS if wanted.is_floating_point else not stored.is_floating_point


def check_fits(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Check that a checkpoint's tensors have the shapes that `model` wants, merged ones after merging, and its kinds.

    Both are on the meta device: nothing is read, and the parameters of the model are replaced.

    Raises:
        CheckpointError: naming the first that does not fit.
    """
    wanted = model.state_dict()
    for key, name in map_keys(model, tensors).parameter.items():
        stored, like = tensors[key].dtype, wanted[name].dtype
        if not same_kind(stored, like):
            kind = "floats of 16 bits or more" if like.is_floating_point else dtype_name(like)
            raise CheckpointError(
                f"{key} holds {dtype_name(stored)} in the checkpoint, wanted {kind}: as plain numbers "
                "they would be other weights. If it is quantized, config.json lacks its quantization_config; give the "
                "model that it was made from"
            )
    load_keys(model, tensors, tensors.__getitem__, "meta")


def release(module: nn.Module, *, recurse: bool = True) -> None:
    """Put the parameters of `module` back on the meta device, freeing their memory; buffers stay."""
    for submodule in module.modules() if recurse else (module,):
        for name, parameter in list(submodule.named_parameters(recurse=False)):
            empty = torch.empty_like(parameter, device="meta")
            setattr(submodule, name, nn.Parameter(empty, requires_grad=False))


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from showing its own bar for every load."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
