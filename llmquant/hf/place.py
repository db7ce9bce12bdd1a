"""Putting packed modules in the place of dense ones, ready to be loaded, ready to run, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmquant.compat.parameter_names import mark_initialized, not_saved, set_not_saved, set_tied, tied
from llmquant.hf.find import weight_shape
from llmquant.hf.fuse import fuse
from llmquant.hf.ties import replace, share_with_heads, tied_heads
from llmquant.nn.embedding import PackedEmbedding
from llmquant.nn.int8_linear import Int8Linear
from llmquant.nn.linear import PackedLinear
from llmquant.nn.storage import PackedStorage
from llmquant.spec import Scheme


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


def stand_in() -> Tensor:
    """What `PackedLinear.weight` is while a model loads: `_init_weights` of some models ask for it by name.

    They leave alone whatever carries this mark. It is no parameter, so that neither loading nor saving sees it.
    """
    weight = torch.empty(0)
    mark_initialized(weight)
    return weight


def finish(model: nn.Module) -> None:
    """What comes after loading: drop the stand-ins, and make layers ready for the kernels of the device they lie on.

    No packed weight asks for a gradient: the loader makes every float one trainable.
    """
    for module in model.modules():
        if isinstance(module, PackedStorage):
            module.weight_scale.requires_grad_(False)
            if isinstance(module, Int8Linear):
                if module.input_scale is not None:
                    module.input_scale.requires_grad_(False)
            elif hasattr(module, "weight"):
                del module.weight
    # transformers has tied what is tied; from now on packed tensors are by the modules themselves, but not a bias.
    tables = tuple(f"{name}." for name in tied_heads(model).values())
    set_tied(model, {target: source for target, source in tied(model).items() if not source.startswith(tables)})
    # One at a time: the tensors it had are gone before the next follows, so memory holds the model and one layer more.
    for module in model.modules():
        if isinstance(module, PackedStorage):
            module.prepare()
    fuse(model)


def place_dense(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every packed module by a dense one; a Conv1D becomes a Linear, and what was tied stays tied."""
    heads, dense = tied_heads(model), {}
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedEmbedding):
            dense[name] = module.dense().to(dtype)
        elif isinstance(module, PackedStorage):
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
        set_not_saved(model, {key for key in not_saved(model) if not key.startswith(f"{head}.")})
    own = {f"{head}.weight": f"{name}.weight" for head, name in heads.items()}
    set_tied(model, tied(model) | own)
