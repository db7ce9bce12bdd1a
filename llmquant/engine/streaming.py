"""Weights that come from a checkpoint when they are needed and go when they are not."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmquant.compat.loading import KeyMap, load_keys, release
from llmquant.errors import CheckpointError
from llmquant.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StreamedWeights:
    """Gives a meta-device model the weights of one block at a time (see `BlockWeights`)."""

    def __init__(
        self, model: PreTrainedModel, checkpoint: Checkpoint, key_map: KeyMap, blocks_path: str, dtype: torch.dtype
    ) -> None:
        self._model, self._checkpoint, self._dtype = model, checkpoint, dtype
        self._path = f"{blocks_path}."
        self._keys = key_map.parameter
        # Persistent buffers decide too: DeepSeek's router adds one to its scores.
        self._names = [name for name, _ in model.named_parameters()] + sorted(
            {name for name, _ in model.named_buffers()} & model.state_dict().keys()
        )

    def load_outside(self) -> None:
        """Load what the model runs before, between and after its blocks; not the language-model head."""
        base = self._model.base_model
        prefix = next(name for name, module in self._model.named_modules() if module is base)
        keep_embeddings_small(base, self._dtype)
        inside = f"{prefix}." if prefix else ""
        self._load({n for n in self._names if n.startswith(inside) and not n.startswith(self._path)})

    def release_outside(self, needed: Collection[nn.Module]) -> None:
        """Free what `load_outside` loaded, except `needed` and what the modules around the blocks hold themselves."""
        for name, module in self._model.named_modules():
            around = not name or self._path.startswith(f"{name}.")
            if not around and not f"{name}.".startswith(self._path) and module not in needed:
                release(module, recurse=False)

    def load(self, index: int) -> None:
        """Load decoder block `index`."""
        prefix = f"{self._path}{index}."
        self._load({name for name in self._names if name.startswith(prefix)})
        self._share(prefix)

    def release(self, index: int) -> None:
        """Free decoder block `index`."""
        release(self._model.get_submodule(f"{self._path}{index}"))

    def _share(self, prefix: str) -> None:
        """Load what runs in this block with the weight of an earlier one, which has gone by now."""
        shared = {name: owner for name, owner in self._model.all_tied_weights_keys.items() if name.startswith(prefix)}
        gone = {owner for owner in shared.values() if self._model.get_parameter(owner).is_meta}
        self._load(gone)
        for name, owner in shared.items():
            module, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(module), leaf, self._model.get_parameter(owner))
        for owner in gone:
            release(self._model.get_submodule(owner.rpartition(".")[0]), recurse=False)

    def _load(self, names: set[str]) -> None:
        keys = [key for key, name in self._keys.items() if name in names]
        load_keys(self._model, keys, self._checkpoint.read)
        loaded = {self._keys[key] for key in keys}
        for name in sorted(names - loaded):
            owner, _, leaf = name.rpartition(".")
            tensor = getattr(self._model.get_submodule(owner), leaf)
            if tensor.is_meta:
                raise CheckpointError(
                    f"the checkpoint has no tensor for {name}, which config.json describes; the weights and the "
                    "config do not belong together"
                )


def keep_embeddings_small(base_model: nn.Module, dtype: torch.dtype) -> None:
    """Hold embeddings in the checkpoint's dtype and widen their output.

    In float32 the vocabulary alone would be the largest thing in memory.
    """
    for module in base_model.modules():
        if isinstance(module, nn.Embedding):
            module.to(dtype)
            module.register_forward_hook(_widen)


def _widen(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
    return output.float()
