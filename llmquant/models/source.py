"""Where the weights of a model come from: a checkpoint on disk, a model in memory, or either with edits applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from llmquant.models.edits import Edit, edited_value, round_to


class Stored(Protocol):
    """What is known of a tensor without reading it."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> Sequence[int]: ...


class WeightSource(Protocol):
    """The tensors of a model by key. `models.checkpoint.Checkpoint` is one."""

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """Every tensor by its key."""
        ...

    def read(self, name: str, /) -> Tensor:
        """One tensor as it is stored; not to be written to."""
        ...


class Loaded:
    """A model in memory as a source: its state dict, of tied tensors the first."""

    def __init__(self, model: nn.Module) -> None:
        owners: dict[int, str] = {}
        state = model.state_dict(keep_vars=True)
        self.tensors = {name: tensor for name, tensor in state.items() if owners.setdefault(id(tensor), name) == name}

    def read(self, name: str, /) -> Tensor:
        """The tensor of the model itself."""
        return self.tensors[name].detach()


class Edited:
    """A source with edits applied. More may follow as blocks are reached; what was read before is not changed."""

    def __init__(
        self, source: WeightSource, edits: Iterable[Edit] = (), *, names: Mapping[str, str] | None = None
    ) -> None:
        """Start with some edits.

        `names` has the parameter that each key of `source` holds; None where keys are the names of parameters.
        """
        self._source = source
        self._names = {key: key for key in source.tensors} if names is None else names
        self._keys = {name: key for key, name in self._names.items()}
        self.edits: list[Edit] = []
        self.tensors: dict[str, Stored] = dict(source.tensors)
        self.extend(edits)

    def extend(self, edits: Iterable[Edit]) -> None:
        """Apply more edits behind those that are there."""
        for edit in edits:
            self.edits.append(edit)
            if edit.kind in ("set", "untie") and edit.name not in self._keys:
                self._create(edit)

    def read(self, name: str, /) -> Tensor:
        """One tensor, as the edits have made it, in the dtype in which it is stored.

        Raises:
            QuantizationError: if that dtype cannot hold it.
        """
        parameter = self._names.get(name, name)
        if all(edit.name != parameter or edit.kind == "config" for edit in self.edits):
            return self._source.read(name)
        value = edited_value(parameter, self.edits, self._original)
        assert value is not None  # it is in `tensors`, so it is there or was created
        return round_to(value, self.tensors[name].dtype, parameter)

    def _original(self, parameter: str) -> Tensor | None:
        key = self._keys.get(parameter, parameter)
        return self._source.read(key).cpu() if key in self._source.tensors else None

    def _create(self, edit: Edit) -> None:
        """Make room for a tensor that the source does not have; its key is its name."""
        if edit.kind == "untie":
            self.tensors[edit.name] = self.tensors[self._keys.get(str(edit.value), str(edit.value))]
        else:
            assert edit.by is not None
            beside = f"{edit.name.rpartition('.')[0]}.weight"
            dtype = self.tensors[self._keys.get(beside, beside)].dtype
            self.tensors[edit.name] = torch.empty(edit.by.shape, dtype=dtype, device="meta")
