"""One GGUF file, written where each tensor belongs: its header says where that is before any work is done.

A unit is written in place and flushed before the journal names it, so a killed run goes on in the same file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from llmquant.errors import CheckpointError, OutputError
from llmquant.formats.base import Planned
from llmquant.formats.gguf import blocks, reference
from llmquant.formats.gguf.file import Entry, Value, make_header, read_header
from llmquant.formats.gguf.llama import named, turn, turn_back, turned_heads
from llmquant.models.checkpoint import Checkpoint
from llmquant.models.safetensors_header import TensorInfo
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

FILE = "model.gguf"
HEADS = ("llama.attention.head_count", "llama.attention.head_count_kv")


@dataclass(frozen=True)
class GgufFile:
    """A file, whole or so far; see `base.Written`."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]
    _checkpoint: Checkpoint

    @classmethod
    def open(cls, folder: Path) -> GgufFile:
        metadata, tensors = read_header(folder / FILE)
        if not all(isinstance(metadata.get(key), int) and metadata[key] for key in HEADS):
            raise CheckpointError(f"{folder / FILE}: does not say {' and '.join(HEADS)}, as llmquant's files do")
        return cls(metadata, tensors, Checkpoint(folder, tensors))

    def schemes(self) -> Mapping[str, Scheme]:
        return {}  # llmquant.json has digests of all tensors of each file that was ever written

    def read(self, name: str) -> Tensor:
        return self._checkpoint.read(name)

    def decode(self, name: str, tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedTensor:
        stored = named(f"{name}.weight")
        quantized = blocks.decode(name, tensors[stored], scheme)
        heads = self._heads(stored)
        if heads is None:
            return quantized
        return QuantizedTensor(turn_back(quantized.codes, heads), turn_back(quantized.scales, heads))

    def decode_reference(self, name: str, tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedTensor:
        stored = named(f"{name}.weight")
        quantized = reference.decode_blocks(name, tensors[stored], scheme.bits)
        heads = self._heads(stored)
        if heads is None:
            return quantized
        codes, scales = (_sorted(part, heads) for part in (quantized.codes, quantized.scales))
        return QuantizedTensor(codes, scales)

    def restore(self, key: str, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        heads = self._heads(named(key))
        return tensor if heads is None else _sorted(tensor, heads)

    def _heads(self, name: str) -> int | None:
        heads, key_heads = (self.metadata[key] for key in HEADS)
        assert isinstance(heads, int)  # `open` looked
        assert isinstance(key_heads, int)
        return turned_heads(name, heads, key_heads)


class GgufWriter:
    """See `base.Writer`."""

    def __init__(self, folder: Path, metadata: Mapping[str, Value], entries: Sequence[Entry]) -> None:
        """Begin the file, or go on with it: where it is there, only its header is written again.

        Raises:
            OutputError: if it cannot be written.
        """
        self._folder, self._path = folder, folder / FILE
        self._entries = {entry.name: entry for entry in entries}
        header, size = make_header(metadata, entries)
        with self._opened() as file:
            os.pwrite(file, header, 0)
            os.ftruncate(file, size)
        self._file = GgufFile.open(folder)

    def add(
        self, file: str, quantized: Mapping[str, tuple[QuantizedTensor, Scheme]], kept: Mapping[str, Tensor]
    ) -> tuple[int, list[str]]:
        size, names = 0, []
        with self._opened() as opened:
            for name, (weight, scheme) in quantized.items():
                stored = named(f"{name}.weight")
                encoded = blocks.encode(name, weight, scheme)  # whole rows, so they may change places afterwards
                size += self._put(opened, stored, encoded)
                names.append(stored)
            for key, tensor in kept.items():
                stored = named(key)
                size += self._put(opened, stored, tensor)
                names.append(stored)
        return size, names

    def written(self, file: str) -> GgufFile:
        return self._file

    def finish(self, plan: Planned, config: dict[str, Any], files: Mapping[str, Sequence[str]]) -> None:
        """All is in the file already."""

    def _put(self, opened: int, name: str, tensor: Tensor) -> int:
        dtype, shape = self._entries[name].stored
        heads = self._file._heads(name)
        if heads is not None:
            tensor = turn(tensor, heads)
        tensor = tensor.to(dtype).contiguous()
        assert tuple(tensor.shape) == shape, f"{name}: {tuple(tensor.shape)}, planned {shape}"
        data, place = tensor.reshape(-1).view(torch.uint8).numpy().data, self._file.tensors[name].begin
        while data:  # one call writes at most 2 GiB, and may write less
            written = os.pwrite(opened, data, place)
            data, place = data[written:], place + written
        return tensor.nbytes

    @contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            opened = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                yield opened
                os.fsync(opened)
            finally:
                os.close(opened)
        except OSError as error:
            raise OutputError(
                f"{self._path}: cannot be written ({error.strerror or error}); what was finished before is intact; "
                "make room, or check the folder, and run again with --resume"
            ) from error


def _sorted(rows: Shaped[Tensor, "rows ..."], heads: int) -> Shaped[Tensor, "rows ..."]:
    """Rows of the file where the reference says that the checkpoint has them."""
    found = torch.empty_like(rows)
    found[reference.source_rows(rows.shape[0], heads)] = rows
    return found
