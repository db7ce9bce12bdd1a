"""What a checkpoint must hold for a model, checked from the headers of its files before anything is read.

transformers fills what is missing with random numbers, and converts what has another dtype, and warns at most.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmquant.errors import CheckpointError
from llmquant.hf.find import NotPackable, find_packed
from llmquant.hf.place import place_empty
from llmquant.models.checkpoint import Checkpoint
from llmquant.models.safetensors_header import TensorInfo, read_header
from llmquant.models.skeleton import build_skeleton
from llmquant.nn.storage import PackedStorage
from llmquant.words import dtype_name

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from llmquant.compat.loading import KeyMap


def read_headers(files: Sequence[str]) -> dict[str, TensorInfo]:
    """Every tensor of safetensors files, by name.

    Raises:
        NotPackable: if there is a file of another kind.
        CheckpointError: if a file is damaged.
    """
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        if not file.endswith(".safetensors"):
            raise NotPackable(f"{file} is not a safetensors file")
        tensors |= read_header(Path(file))
    return tensors


def check_stored(model: PreTrainedModel, tensors: Mapping[str, TensorInfo]) -> None:
    """Check that a checkpoint holds all of a model with packed layers, as its modules want it.

    Only what a class adds to the model that was stored, such as the `score` of a classifier, may be new.

    Raises:
        CheckpointError: naming the first tensor that is missing, or has the wrong dtype or shape.
    """
    from llmquant.compat.loading import expected, map_keys, may_be_new  # late, see llmquant.hf.register

    key_map = map_keys(model, tensors)
    new = may_be_new(model)
    missing = sorted(name for name in expected(model) - key_map.reached if name not in new)
    if missing:
        more = f" and {len(missing) - 1} more tensors" if missing[1:] else ""
        raise CheckpointError(f"the checkpoint lacks {missing[0]}{more} of {type(model).__name__}")
    _check_kinds(model, tensors, key_map, new)


def check_packed_places(model: PreTrainedModel, keys: Iterable[str]) -> None:
    """Check that no module of a model that others prepared wants a dense weight where the checkpoint has a packed one.

    Raises:
        CheckpointError: naming the first that does; it would be filled with random numbers.
    """
    from llmquant.compat.loading import map_keys

    found = set(keys)
    packed = {key.removesuffix("_packed") for key in found if key.endswith(".weight_packed")}
    key_map = map_keys(model, sorted(packed - found))
    dense = sorted(key_map.parameter.keys() - key_map.merged)
    if dense:
        more = f" and {len(dense) - 1} more weights" if dense[1:] else ""
        raise CheckpointError(
            f"the checkpoint holds {dense[0]}{more} packed, but by the quantization_config in config.json (targets, "
            "format, quantization_status) it is not, and would be filled with random numbers; the config and the "
            "weights do not belong together"
        )


def check_shapes(checkpoint: Checkpoint, config: PreTrainedConfig, *, trust_remote_code: bool = False) -> None:
    """Compare every tensor of a checkpoint with the model that would take it, packed layers included.

    transformers looks only while it loads, after it has made room for what it will then refuse, and a wrong number in a
    config.json can ask for more memory than there is.

    Checkpoints in formats that llmquant leaves to other readers are not compared.

    Raises:
        CheckpointError: naming the first tensor that does not fit, or what in the configuration makes no sense.
    """
    from llmquant.compat.loading import check_fits
    from llmquant.compat.quantizers import METHOD

    plain = copy.deepcopy(config)
    stored = plain.__dict__.pop("quantization_config", None)
    if stored is not None and (not isinstance(stored, Mapping) or stored.get("quant_method") != METHOD):
        return
    model = build_skeleton(plain, trust_remote_code=trust_remote_code)
    if stored is not None:
        try:
            place_empty(model, find_packed(model, stored, list(checkpoint.tensors)), model.dtype)
        except NotPackable:
            return
    check_fits(model, {key: info.on_meta() for key, info in checkpoint.tensors.items()})


def _check_kinds(model: nn.Module, tensors: Mapping[str, TensorInfo], key_map: KeyMap, new: frozenset[str]) -> None:
    wanted = model.state_dict()
    packed = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, PackedStorage))
    for key, name in key_map.parameter.items():
        info, like = tensors[key], wanted[name]
        if not _fits(info.dtype, like.dtype, exact=name.startswith(packed)):
            raise _wrong(info, like, "another dtype would mean other numbers")
        if key not in key_map.merged and name not in new and info.shape != tuple(like.shape):
            raise _wrong(info, like, "the weights and config.json do not belong together")


def _fits(stored: torch.dtype, wanted: torch.dtype, *, exact: bool) -> bool:
    from llmquant.compat.loading import same_kind

    return same_kind(stored, wanted) and (stored == wanted or wanted.is_floating_point or not exact)


def _wrong(info: TensorInfo, like: Tensor, why: str) -> CheckpointError:
    got = f"{dtype_name(info.dtype)} {list(info.shape)}"
    wanted = "a float of 16 bits or more" if like.is_floating_point() else dtype_name(like.dtype)
    return CheckpointError(
        f"{info.file.name}: {info.name} is {got}, wanted {wanted} {list(like.shape)}; {why}: the file is damaged, "
        "fetch or write it again"
    )
