"""Which modules of a model a compressed-tensors checkpoint stores packed, and replacing them by packed ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llmquant.compat.linears import is_linear, why_not_linear
from llmquant.errors import CheckpointError
from llmquant.formats.compressed_tensors import schemes_of
from llmquant.hf.fuse import fuse
from llmquant.layers.int8_linear import Int8Linear
from llmquant.layers.packed_embedding import PackedEmbedding, is_table
from llmquant.layers.packed_linear import PackedLinear
from llmquant.spec import Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNREAD = ("kv_cache_scheme", "sparsity_config", "transform_config", "moe_sparsity_config")


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


def find_packed(
    model: PreTrainedModel, stored: Mapping[str, Any], keys: Sequence[str] | None = None
) -> dict[str, Scheme]:
    """The modules of `model` that the checkpoint stores packed.

    Args:
        model: with its original modules; weights are not looked at.
        stored: the `quantization_config` of the checkpoint.
        keys: names of all tensors in the checkpoint, where known.

    Raises:
        NotPackable: if anything else is quantized too, such as experts.
        CheckpointError: if packed weights are missing.
    """
    check_config(stored)
    table = schemes_of(stored)
    tied = {name.removesuffix(".weight") for name in model.all_tied_weights_keys}
    found = {}
    for name, module in model.named_modules():
        kind = _class_name(module)
        scheme = table.scheme_for(name, kind) if kind and name not in tied else None
        if scheme is None or scheme.is_keep:
            continue
        if not (is_table(module) and not scheme.activations) and (reason := why_not_linear(module)):
            raise NotPackable(f"{name} {reason}")
        _, in_features = weight_shape(module)
        if not scheme.divides(in_features):
            raise CheckpointError(f"{name}: {in_features} inputs are not divisible into the groups of {scheme}")
        found[name] = scheme
    if keys is not None:
        _check_count(found, keys)
    return found


def _check_count(found: Mapping[str, Scheme], keys: Sequence[str]) -> None:
    # Names in a checkpoint may differ from those in the model, but each packed weight belongs to one module.
    stored = [key for key in keys if key.endswith(".weight_scale")]
    if len(stored) > len(found):
        extra = next((key for key in stored if key.removesuffix(".weight_scale") not in found), stored[0])
        raise NotPackable(
            f"it holds {len(stored)} packed weights, and {len(found)} of them belong to layers that stay so; "
            f"{extra} does not"
        )
    if len(stored) < len(found):
        missing = next((name for name in found if f"{name}.weight_scale" not in keys), "")
        raise CheckpointError(
            f"the quantization_config names {len(found)} quantized layers of this model, but the checkpoint holds "
            f"{len(stored)} packed weights; {missing or 'one'} has none; the checkpoint is incomplete"
        )


def _class_name(module: nn.Module) -> str | None:
    """The class that compressed-tensors would match, None for what it leaves alone; Conv1D is our extension."""
    if isinstance(module, nn.Embedding):
        return "Embedding"
    return "Linear" if is_linear(module) else None


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """(out_features, in_features) of an nn.Linear or a Conv1D; (rows, columns) of an nn.Embedding."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    return (module.out_features, module.in_features) if isinstance(module, nn.Linear) else (module.nf, module.nx)  # type: ignore[return-value]


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` under `name`, in the training mode of the one it replaces."""
    parent, _, child = name.rpartition(".")
    module.train(model.get_submodule(name).training)
    setattr(model.get_submodule(parent), child, module)


def place_empty(model: nn.Module, schemes: Mapping[str, Scheme], dtype: torch.dtype) -> None:
    """Replace modules by packed ones without weights (on the meta device), scales and bias in `dtype`.

    A head that is tied to an embedding among them shares its packed weight.
    """
    for name, scheme in schemes.items():
        module = model.get_submodule(name)
        out_features, in_features = weight_shape(module)
        if isinstance(module, nn.Embedding):
            packed = PackedEmbedding(in_features, out_features, scheme, dtype=dtype, device="meta").stand_for(module)
        else:
            bias = getattr(module, "bias", None) is not None
            kind = Int8Linear if scheme.activations else PackedLinear
            packed = kind(in_features, out_features, scheme, bias=bias, dtype=dtype, device="meta")
        if not isinstance(packed, Int8Linear):
            packed.weight = stand_in()
        replace(model, name, packed)
    share_with_heads(model)


def share_with_heads(model: nn.Module) -> None:
    """Replace each head that is tied to a `PackedEmbedding` by a `PackedLinear` with the same parameters.

    transformers ties these instead of the dense weight while it loads, and saves them once, under the embedding's name.
    """
    attributes: Any = model
    tied = dict(getattr(model, "all_tied_weights_keys", {}))
    for target, source in list(tied.items()):
        head_name, name = target.removesuffix(".weight"), source.removesuffix(".weight")
        if not source.endswith(".weight") or not isinstance(table := model.get_submodule(name), PackedEmbedding):
            continue
        head = PackedLinear(table.in_features, table.out_features, table.scheme, device="meta")
        table.share_with(head)
        del tied[target]
        for parameter, value in table.named_parameters():
            setattr(head, parameter, value)
            tied[f"{head_name}.{parameter}"] = f"{name}.{parameter}"
        head.bias = getattr(model.get_submodule(head_name), "bias", None)  # pyright: ignore[reportAttributeAccessIssue]
        replace(model, head_name, head)
        own = {f"{head_name}.{parameter}" for parameter, _ in table.named_parameters()}
        attributes._keys_to_ignore_on_save = {*(attributes._keys_to_ignore_on_save or ()), *own}
    _set_tied(model, tied)


def _set_tied(model: nn.Module, tied: dict[str, str]) -> None:
    attributes: Any = model
    if tied != getattr(model, "all_tied_weights_keys", {}):
        attributes.all_tied_weights_keys = tied
        attributes._tied_weights_keys = dict(tied)  # what `tie_weights()` of a user goes by


def stand_in() -> Tensor:
    """What `PackedLinear.weight` is while a model loads: `_init_weights` of some models ask for it by name.

    They leave alone whatever carries this mark. It is no parameter, so that neither loading nor saving sees it.
    """
    weight = torch.empty(0)
    weight._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]
    return weight


def finish(model: nn.Module) -> None:
    """What comes after loading: drop the stand-ins, and make layers ready for the kernels of the device they lie on.

    No packed weight asks for a gradient: the loader makes every float one trainable.
    """
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.weight_scale.requires_grad_(False)
            if isinstance(module, Int8Linear):
                if module.input_scale is not None:
                    module.input_scale.requires_grad_(False)
            elif hasattr(module, "weight"):
                del module.weight
    # transformers has tied what is tied; from now on it is by the modules themselves.
    heads = tuple(f"{name}." for name in tied_heads(model))
    tied = getattr(model, "all_tied_weights_keys", {})
    _set_tied(model, {target: source for target, source in tied.items() if not target.startswith(heads)})
    prepare(model)
    fuse(model)


def prepare(model: nn.Module) -> None:
    """Bring every packed linear layer that fast kernels can run into their layout, one at a time, where it lies.

    The tensors it had are gone before the next one follows, so memory holds one copy of the model and one of a layer.

    A vocabulary that serves as embedding too is prepared once, for both.
    """
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.prepare()


def tied_heads(model: nn.Module) -> dict[str, str]:
    """The name of each head that shares the weight of a `PackedEmbedding`, and that of the embedding."""
    names = {id(module): name for name, module in model.named_modules()}
    tables = {name: module for name, module in model.named_modules() if isinstance(module, PackedEmbedding)}
    return {names[id(table.head)]: name for name, table in tables.items() if table.head is not None}


def place_dense(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every packed module by a dense one; a Conv1D becomes a Linear, and what was tied stays tied."""
    attributes: Any = model
    heads, dense = tied_heads(model), {}
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedEmbedding):
            dense[name] = module.dense().to(dtype)
        elif isinstance(module, PackedLinear):
            linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
            if name not in heads:
                linear.weight = nn.Parameter(module.dequantize().to(dtype))
            if module.bias is not None:
                linear.bias = nn.Parameter(module.bias.detach().to(dtype))
            dense[name] = linear
    for name, module in dense.items():
        replace(model, name, module)
    for head, name in heads.items():
        dense[head].weight = dense[name].weight
        attributes._keys_to_ignore_on_save = {
            key for key in attributes._keys_to_ignore_on_save if not key.startswith(f"{head}.")
        }
    tied = {f"{head}.weight": f"{name}.weight" for head, name in heads.items()}
    _set_tied(model, getattr(model, "all_tied_weights_keys", {}) | tied)


def swap_packed(model: PreTrainedModel) -> PreTrainedModel:
    """Keep a model packed that plain transformers has loaded with compressed-tensors.

    For models that were loaded before `import llmquant`; otherwise this has happened already and nothing is done.

    Args:
        model: as `from_pretrained` returned it; changed in place.

    Returns:
        the same model.

    Raises:
        CheckpointError: if the model is not one of ours to keep packed, or has run a forward, which made it dense.
    """
    from llmquant.compat.quantizers import CompressedTensorsConfig, mark_as_packed, remove_decompression
    from llmquant.hf.packed import PackedQuantizer

    if getattr(getattr(model, "hf_quantizer", None), "packed", False):
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
        schemes = find_packed(model, stored)
    except NotPackable as error:
        raise CheckpointError(f"the model cannot be kept packed: {error}") from error
    for name in schemes:
        _take_over(model, name, schemes[name])
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
