"""Heads that share the packed weight of an embedding."""

from __future__ import annotations

from torch import nn

from llmquant.compat.parameter_names import not_saved, set_not_saved, set_tied, tied
from llmquant.nn.embedding import PackedEmbedding
from llmquant.nn.linear import PackedLinear


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` under `name`, in the training mode of the one it replaces."""
    parent, _, child = name.rpartition(".")
    module.train(model.get_submodule(name).training)
    setattr(model.get_submodule(parent), child, module)


def share_with_heads(model: nn.Module) -> None:
    """Replace each head that is tied to a `PackedEmbedding` by a `PackedLinear` with the same parameters.

    transformers ties these instead of the dense weight while it loads, and saves them once, under the embedding's name.
    """
    ties = tied(model)
    for target, source in list(ties.items()):
        head_name, name = target.removesuffix(".weight"), source.removesuffix(".weight")
        if not source.endswith(".weight") or not isinstance(table := model.get_submodule(name), PackedEmbedding):
            continue
        head = PackedLinear(table.in_features, table.out_features, table.scheme, device="meta")
        table.share_with(head)
        del ties[target]
        for parameter, value in table.named_parameters():
            setattr(head, parameter, value)
            ties[f"{head_name}.{parameter}"] = f"{name}.{parameter}"
        head.bias = getattr(model.get_submodule(head_name), "bias", None)  # pyright: ignore[reportAttributeAccessIssue]
        replace(model, head_name, head)
        own = {f"{head_name}.{parameter}" for parameter, _ in table.named_parameters()}
        set_not_saved(model, not_saved(model) | own)
    set_tied(model, ties)


def tied_heads(model: nn.Module) -> dict[str, str]:
    """The name of each head that shares the weight of a `PackedEmbedding`, and that of the embedding."""
    names = {id(module): name for name, module in model.named_modules()}
    tables = {name: module for name, module in model.named_modules() if isinstance(module, PackedEmbedding)}
    return {names[id(table.head)]: name for name, table in tables.items() if table.head is not None}
