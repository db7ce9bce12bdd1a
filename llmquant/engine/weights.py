"""The weights of one block at a time for a model without any: they come when they are needed, and go."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmquant.compat.loading import load_keys, release
from llmquant.compat.parameter_names import tied
from llmquant.errors import CheckpointError
from llmquant.models.source import Edited
from llmquant.recipe.plan import MatrixRow, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Work:
    """A model that is to be quantized.

    Attributes:
        model: without weights (on meta), in the dtype that calibration computes in; it borrows those of one block.
        source: of the weights; transforms edit it block by block.
        names: the parameter that each key of the source holds.
        converted: whether the source is a checkpoint, whose tensors transformers renames and merges when it loads them.
    """

    model: PreTrainedModel
    plan: Plan
    source: Edited
    names: Mapping[str, str]
    converted: bool

    @property
    def path(self) -> str:
        """Name of the list of decoder blocks."""
        return self.plan.inventory.path

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """The decoder blocks, in order."""
        blocks = self.model.get_submodule(self.path)
        assert isinstance(blocks, nn.ModuleList)
        return list(blocks)

    @cached_property
    def keys(self) -> Mapping[str, str]:
        """The key in the source of each parameter that is a tensor of its own."""
        return {name: key for key, name in self.names.items()}

    @cached_property
    def rows(self) -> Mapping[int | None, list[MatrixRow]]:
        """The matrices to quantize of each block; None: outside."""
        found: dict[int | None, list[MatrixRow]] = {}
        for row in self.plan.quantized:
            found.setdefault(row.matrix.block, []).append(row)
        return found

    def read(self, row: MatrixRow) -> Tensor:
        """The parameter that holds a matrix."""
        return self.source.read(self.keys[row.matrix.key])


class BlockWeights:
    """Gives the model of a `Work` the weights of what it runs next, on one device."""

    def __init__(self, work: Work, device: torch.device) -> None:
        self._work, self._model, self._device = work, work.model, device
        self._path = f"{work.path}."
        # Persistent buffers decide too: DeepSeek's router adds one to its scores.
        self._names = [name for name, _ in self._model.named_parameters()] + sorted(
            {name for name, _ in self._model.named_buffers()} & self._model.state_dict().keys()
        )
        for module in self._model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(device))

    def load_outside(self) -> None:
        """Load what the model runs before, between and after its blocks; not the language-model head."""
        base = self._model.base_model
        prefix = next(name for name, module in self._model.named_modules() if module is base)
        _keep_embeddings_small(base, self._work.plan.inventory.dtype)
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
        release(self._work.blocks[index])

    def _share(self, prefix: str) -> None:
        """Load what runs in this block with the weight of an earlier one, which has gone by now."""
        shared = {name: owner for name, owner in tied(self._model).items() if name.startswith(prefix)}
        gone = {owner for owner in shared.values() if self._model.get_parameter(owner).is_meta}
        self._load(gone)
        for name, owner in shared.items():
            module, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(module), leaf, self._model.get_parameter(owner))
        for owner in gone:
            release(self._model.get_submodule(owner.rpartition(".")[0]), recurse=False)

    def _load(self, names: set[str]) -> None:
        keys = [key for key, name in self._work.names.items() if name in names]
        load_keys(self._model, keys, self._work.source.read, self._device, converted=self._work.converted)
        loaded = {self._work.names[key] for key in keys}
        for name in sorted(names - loaded):
            owner, _, leaf = name.rpartition(".")
            tensor = getattr(self._model.get_submodule(owner), leaf)
            if tensor.is_meta:
                raise CheckpointError(
                    f"the checkpoint has no tensor for {name}, which config.json describes; the weights and the "
                    "config do not belong together"
                )


def _keep_embeddings_small(base_model: nn.Module, dtype: torch.dtype) -> None:
    """Hold embeddings in the checkpoint's dtype and widen their output.

    In float32 the vocabulary alone would be the largest thing in memory.
    """
    for module in base_model.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(partial(_widen, module.weight.dtype))
            module.to(dtype)


def _widen(dtype: torch.dtype, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
    return output.to(dtype)
