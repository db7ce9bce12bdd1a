"""Heads that share the weight of a packed or trainable embedding."""

from __future__ import annotations

from torch import nn

from llmquant.compat.parameter_names import not_saved, set_not_saved, set_tied, tied
from llmquant.nn.embedding import PackedEmbedding
from llmquant.nn.fake_embedding import FakeEmbedding


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` under `name`, in the training mode of the one it replaces."""
    parent, _, child = name.rpartition(".")
    module.train(model.get_submodule(name).training)
    setattr(model.get_submodule(parent), child, module)


def share_with_heads(model: nn.Module) -> None:
    """Replace each head that is tied to a packed or trainable table by a layer with the same tensors.

    transformers ties these instead of the dense weight while it loads, and saves them once, under the embedding's name.
    """
    ties, unsaved = tied(model), not_saved(model)
    for target, source in list(ties.items()):
        head_name, name = target.removesuffix(".weight"), source.removesuffix(".weight")
        table = model.get_submodule(name) if source.endswith(".weight") else None
        if not isinstance(table, PackedEmbedding | FakeEmbedding):
            continue
        replace(model, head_name, table.make_head(getattr(model.get_submodule(head_name), "bias", None)))
        del ties[target]
        held = table.state_dict().keys()
        ties |= {f"{head_name}.{own}": f"{name}.{own}" for own in held}
        unsaved |= {f"{head_name}.{own}" for own in held}
    set_tied(model, ties)
    set_not_saved(model, unsaved)


def tied_heads(model: nn.Module) -> dict[str, str]:
    """The name of each head that shares the weight of a `PackedEmbedding`, and that of the embedding."""
    names = {id(module): name for name, module in model.named_modules()}
    tables = {name: module for name, module in model.named_modules() if isinstance(module, PackedEmbedding)}
    return {names[id(table.head)]: name for name, table in tables.items() if table.head is not None}
