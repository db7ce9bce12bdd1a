"""What a format is: a module of this package, or a folder's `__init__`, with what `Format` says; found by its name.

A format knows how weights lie in files: what it cannot say, which dtype its scales have, how many bytes things take,
how tensors are written and read back, and who can load the result. Names are those of the source's checkpoint: a
weight "model.layers.0.mlp.down_proj.weight" is quantized as "model.layers.0.mlp.down_proj", or kept under its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Shaped
from torch import Tensor

from llmquant.models.inventory import Inventory, Matrix, ModuleInfo
from llmquant.models.safetensors_header import TensorInfo
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a reader loads the result.

    Attributes:
        ok: it does.
        note: how, or why not, and for which modules.
    """

    ok: bool
    note: str


Problem = tuple[str, ModuleInfo | None]
"""What is wrong, with the module to name, if it is one."""


class Row(Protocol):
    """What becomes of one module, or of one matrix in it."""

    @property
    def module(self) -> ModuleInfo: ...
    @property
    def scheme(self) -> Scheme: ...


class MatrixRow(Row, Protocol):
    """A weight that changes."""

    @property
    def matrix(self) -> Matrix: ...


class Planned(Protocol):
    """A plan, as formats see it.

    Attributes:
        rows: of all modules; tied ones have the scheme of their owner.
        quantized: of those that own a weight that changes.
    """

    @property
    def inventory(self) -> Inventory: ...
    @property
    def rows(self) -> Sequence[Row]: ...
    @property
    def quantized(self) -> Sequence[MatrixRow]: ...


@dataclass(frozen=True, slots=True)
class Content:
    """One tensor of the source that the result will hold.

    Attributes:
        shape: as the source has it.
        dtype: as the source has it.
        scheme: what becomes of it; `KEEP` where it stays.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    scheme: Scheme


class Written(Protocol):
    """What a folder holds, whole or so far: tensors of the format, and what they mean."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its name in the format."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the files of weights say of the model, by keys, as values of JSON; empty where config.json says it."""
        ...

    def schemes(self) -> Mapping[str, Scheme]:
        """The quantized weights of a finished result, as it says itself without llmquant.json; empty if it does not.

        Raises:
            CheckpointError: if it says that nothing is quantized, or what it says is malformed.
        """
        ...

    def read(self, name: str) -> Tensor:
        """Read one tensor; raises CheckpointError if it cannot be read."""
        ...

    def decode(self, name: str, tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedTensor:
        """A quantized weight in the order of the source, from its tensors."""
        ...

    def decode_reference(self, name: str, tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedTensor:
        """The same by code that shares nothing with the writer; verification believes this one."""
        ...

    def restore(self, key: str, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """A kept tensor in the order of the source, its dtype as it was stored."""
        ...


class Writer(Protocol):
    """Writes a result, unit by unit; a unit that was written is safe on the disk."""

    def add(
        self, file: str, quantized: Mapping[str, tuple[QuantizedTensor, Scheme]], kept: Mapping[str, Tensor]
    ) -> tuple[int, list[str]]:
        """Write one unit, or write it again.

        Args:
            file: name of the unit; where a format has a file for each unit, of that file.
            quantized: by name.
            kept: by key, as the source has them.

        Returns:
            its bytes, and the names of its tensors in the format.
        """
        ...

    def written(self, file: str) -> Written:
        """Read a unit back that was written."""
        ...

    def finish(self, plan: Planned, config: dict[str, Any], files: Mapping[str, Sequence[str]]) -> None:
        """Write what goes with the tensors, after the last unit.

        Args:
            plan: of the run.
            config: of config.json, which may gain entries of the format.
            files: names of the tensors of each unit.
        """
        ...


class Format(Protocol):
    """A module of this package.

    Attributes:
        NAME: as recipes say it; the module has underscores for its hyphens.
        UNIT_SUFFIX: of the names of units: where each has a file, how that ends.
        FUSED_BY: the reader that loads q/k/v and gate/up as one layer each, so that what stays of one stays as a whole;
            empty where none does.
    """

    NAME: str
    UNIT_SUFFIX: str
    FUSED_BY: str

    def why_not(self, module: ModuleInfo, scheme: Scheme, *, portable: bool) -> str:
        """Why a module cannot have a scheme, with the fix; empty if it can. `portable`: others must read it too."""
        ...

    def problems(self, rows: Sequence[Row], inventory: Inventory, *, portable: bool) -> Iterator[Problem]:
        """What only the whole of a plan shows; `rows` are of all modules."""
        ...

    def obstacles(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Why a model cannot be written at all, by its config with all defaults; empty if it can."""
        ...

    def scale_dtype(self, scheme: Scheme, checkpoint: torch.dtype) -> torch.dtype:
        """In which scales are stored, which is decided before any weight is divided by one."""
        ...

    def dense_dtype(self, scale_dtype: torch.dtype) -> torch.dtype:
        """In which readers multiply scales and codes, so that calibration sees the weights that they see."""
        ...

    def kept_dtype(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.dtype:
        """In which a tensor that stays is stored; holds each of its numbers exactly."""
        ...

    def payload_bytes(self, shape: tuple[int, int], scheme: Scheme, scale_dtype: torch.dtype) -> int:
        """Bytes of codes, scales and zero points of a weight (out_features, in_features)."""
        ...

    def stored_bytes(self, shape: tuple[int, int], scheme: Scheme, scale_dtype: torch.dtype) -> int:
        """Bytes of all tensors that stand for it."""
        ...

    def names(self, key: str, scheme: Scheme) -> tuple[str, ...]:
        """The tensors that stand for the source's tensor `key`, which becomes `scheme` or stays.

        Raises:
            PlanError: if it has no place in the format.
        """
        ...

    def readers(self, plan: Planned) -> dict[str, Verdict]:
        """Who can load what a plan will write, "llmquant" among them: whether its own kernels run it."""
        ...

    def writer(self, folder: Path, contents: Mapping[str, Content], config: Mapping[str, Any]) -> Writer:
        """Begin or continue a result.

        Args:
            folder: of the run.
            contents: by key, unit after unit.
            config: of the model, of transformers, with all defaults.

        Raises:
            PlanError: if a tensor has no place in the format.
        """
        ...

    def open(self, folder: Path) -> Written:
        """Open a finished result; raises CheckpointError if the folder is none of this format."""
        ...
