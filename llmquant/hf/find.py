"""Which modules of a model a compressed-tensors checkpoint stores packed.

The checkpoint decides: where its packed tensors go, there a packed layer must be, and nowhere else. The config only
says how they are packed. A class target such as "Linear" names modules that are stored as they were, and modules that
only this class has, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from llmquant.compat.linears import is_linear, why_not_linear
from llmquant.compat.parameter_names import tied
from llmquant.compat.quantizers import replaced_experts
from llmquant.errors import CheckpointError
from llmquant.formats.compressed_tensors.config import SchemeTable, schemes_of
from llmquant.nn.embedding import is_table
from llmquant.spec import Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNREAD = ("kv_cache_scheme", "sparsity_config", "transform_config", "moe_sparsity_config")
_MARKS = (".weight_scale", ".weight_packed")  # of a packed weight, one or both


class NotPackable(Exception):
    """A checkpoint that cannot stay packed as a whole; the message says which part and why."""


def check_config(stored: Mapping[str, Any]) -> None:
    """Check that every group of a `quantization_config` is one of our integer schemes.

    Raises:
        NotPackable: naming the first part that is not.
        CheckpointError: if the config is malformed.
    """
    for key in _UNREAD:
        if stored.get(key):
            raise NotPackable(f"its quantization_config has a {key}")
    groups = schemes_of(stored).groups
    if not groups:
        raise NotPackable("its quantization_config names no weights")
    for targets, scheme in groups:
        if scheme is None:
            raise NotPackable(f"{', '.join(targets[:3])} are quantized in a format that llmquant does not run")


def find_packed(model: PreTrainedModel, stored: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Scheme]:
    """The modules of `model` that the checkpoint stores packed.

    Packed weights of modules that `model` lacks, such as the head of a model that is loaded without it, are not needed.

    `model` has its original modules, `keys` are the names of all tensors in the checkpoint.

    Raises:
        NotPackable: if anything else is quantized too, such as experts.
        CheckpointError: if the config does not say how a packed weight is packed, or not as it can be.
    """
    check_config(stored)
    table = schemes_of(stored)
    packed = dict.fromkeys(key.removesuffix(mark) for key in keys for mark in _MARKS if key.endswith(mark))
    if not packed:
        raise CheckpointError("the checkpoint is incomplete: its config describes packed weights, and it holds none")
    places = _places(model, list(packed))
    in_blocks = [base for base in packed if any(part.isdigit() for part in base.split("."))]
    if in_blocks and not places:
        raise CheckpointError(
            f"none of the {len(packed)} packed weights of the checkpoint ({in_blocks[0]}, ...) belongs to a module of "
            f"{type(model).__name__}, which would be filled with random numbers; load it with the class it was made of"
        )
    owners = {target.removesuffix(".weight"): source.removesuffix(".weight") for target, source in tied(model).items()}
    found = {}
    for base, name in places.items():
        if name not in owners:
            found[name] = _scheme(model.get_submodule(name), name, base, table)
        elif owners[name] not in places.values():
            raise NotPackable(f"{name} is packed, but shares the weight of {owners[name]}, which is not")
    return found


def named_packed(model: PreTrainedModel, stored: Mapping[str, Any]) -> dict[str, Scheme]:
    """The modules of `model` that a `quantization_config` names, where the checkpoint is not at hand.

    Raises:
        NotPackable: as `find_packed`.
        CheckpointError: as `find_packed`.
    """
    check_config(stored)
    table = schemes_of(stored)
    borrowed = {name.removesuffix(".weight") for name in tied(model)}
    return {
        name: _scheme(module, name, name, table)
        for name, module in model.named_modules()
        if (isinstance(module, nn.Embedding) or is_linear(module))  # Conv1D, our extension, too
        and name not in borrowed
        and not _said(table, name, module).is_keep
    }


def _places(model: PreTrainedModel, packed: Sequence[str]) -> dict[str, str]:
    """The module that each packed weight belongs to; those of which `model` has no module are left out."""
    from llmquant.compat.loading import map_keys  # late, see llmquant.hf.register

    key_map = map_keys(model, [f"{base}.weight" for base in packed])
    places = {}
    for base in packed:
        parameter = key_map.parameter.get(f"{base}.weight")
        if f"{base}.weight" in key_map.merged:
            raise NotPackable(f"{base} is packed, and {type(model).__name__} merges it with others into {parameter}")
        if parameter is not None and parameter.endswith(".weight"):
            places[base] = parameter.removesuffix(".weight")
    experts = [base for base in packed if base not in places and ".experts." in base]
    if experts and replaced_experts(model):
        raise NotPackable(f"{experts[0]} is packed, and {type(model).__name__} holds all experts in one tensor")
    return places


def _scheme(module: nn.Module, name: str, base: str, table: SchemeTable) -> Scheme:
    """How the module `name` is packed, which the checkpoint calls `base`."""
    scheme = _said(table, name, module)
    if scheme.is_keep and base != name:
        scheme = _said(table, base, module)
    if scheme.is_keep:
        raise CheckpointError(
            f"{base} is packed, but the quantization_config in config.json does not say how: no target names it, or "
            "`ignore` does; the config and the weights do not belong together"
        )
    if not (is_table(module) and not scheme.activations) and (reason := why_not_linear(module)):
        raise NotPackable(f"{name} {reason}")
    _, in_features = weight_shape(module)
    if not scheme.divides(in_features):
        raise CheckpointError(f"{name}: {in_features} inputs are not divisible into the groups of {scheme}")
    return scheme


def _said(table: SchemeTable, name: str, module: nn.Module) -> Scheme:
    scheme = table.scheme_for(name, "Embedding" if isinstance(module, nn.Embedding) else "Linear")
    assert scheme is not None  # `check_config` knows
    return scheme


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """(out_features, in_features) of an nn.Linear or a Conv1D; (rows, columns) of an nn.Embedding."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    return (module.out_features, module.in_features) if isinstance(module, nn.Linear) else (module.nf, module.nx)  # type: ignore[return-value]
