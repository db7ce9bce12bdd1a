"""How many weights a model stands for: a packed layer counts those it was made from, not its words of codes."""

from __future__ import annotations

from torch import nn

from llmquant.nn.embedding import PackedEmbedding
from llmquant.nn.storage import PackedStorage


def is_packed(model: nn.Module) -> bool:
    """Whether a model has packed layers."""
    return any(isinstance(module, PackedStorage) for module in model.modules())


def weight_count(model: nn.Module, *, trainable: bool = False, embeddings: bool = True) -> int:
    """Weights that a model stands for; those that are tied or shared count once.

    With `trainable` only what asks for a gradient counts, which packed weights never do. Without `embeddings` tables
    are left out, and with them a head that is tied to one.
    """
    packed = [module for module in model.modules() if isinstance(module, PackedStorage)]
    leave = {id(p) for layer in packed for name, p in layer.named_parameters(recurse=False) if name != "bias"}
    if not embeddings:
        leave |= {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    dense = sum(p.numel() for p in model.parameters() if id(p) not in leave and (p.requires_grad or not trainable))
    if trainable:
        return dense
    tables = [layer for layer in packed if isinstance(layer, PackedEmbedding)]
    tied = {id(table.head) for table in tables}
    counted = [layer for layer in packed if id(layer) not in tied and (embeddings or layer not in tables)]
    return dense + sum(layer.in_features * layer.out_features for layer in counted)
