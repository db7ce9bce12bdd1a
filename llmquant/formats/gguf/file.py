"""The container: what stands before the tensors of a GGUF file (version 3), made and read. Little-endian throughout.

"GGUF" | version u32 | tensors u64 | entries u64 | entries: key, type, value | tensors: name, dimensions (fastest
first), type, offset from the start of the data | zeros up to a multiple of 32 | data, each tensor padded alike
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from llmquant.errors import CheckpointError
from llmquant.files import open_plain
from llmquant.formats.gguf.blocks import SIZE, row_bytes
from llmquant.models.safetensors_header import TensorInfo
from llmquant.spec import Scheme

Value = str | int | float
ALIGNMENT = 32
_MAGIC, _VERSION = b"GGUF", 3
_UINT32, _FLOAT32, _STRING = 4, 6, 8
_MAX_HEADER = 100 << 20

PLAIN = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
BLOCK_TYPES = {Scheme(4, "group", SIZE): 2, Scheme(8, "group", SIZE): 8}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file.

    Attributes:
        name: as GGUF calls it.
        shape: of the weights, rows first.
        kind: a dtype of `PLAIN`, or a scheme of `BLOCK_TYPES`.
    """

    name: str
    shape: tuple[int, ...]
    kind: torch.dtype | Scheme

    @property
    def stored(self) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape of what is stored: of blocks, bytes in rows."""
        if isinstance(self.kind, Scheme):
            return torch.uint8, (self.shape[0], row_bytes(self.shape[1], self.kind))
        return self.kind, self.shape

    @property
    def bytes(self) -> int:
        """Its size."""
        dtype, shape = self.stored
        return prod(shape) * dtype.itemsize


def make_header(metadata: Mapping[str, Value], entries: Sequence[Entry]) -> tuple[bytes, int]:
    """What stands before the tensors, whose entries are in the order of the data, and the size of the whole file."""
    raw = _MAGIC + struct.pack("<IQQ", _VERSION, len(entries), len(metadata))
    for key, value in metadata.items():
        raw += _text(key) + _value(value)
    offset = 0
    for entry in entries:
        kind = BLOCK_TYPES[entry.kind] if isinstance(entry.kind, Scheme) else PLAIN[entry.kind]
        raw += _text(entry.name) + struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *reversed(entry.shape))
        raw += struct.pack("<IQ", kind, offset)
        offset += _padded(entry.bytes)
    raw += b"\0" * (_padded(len(raw)) - len(raw))
    return raw, len(raw) + offset


def read_header(file: Path) -> tuple[dict[str, Value], dict[str, TensorInfo]]:
    """The metadata, and where each tensor lies; blocks are uint8 of shape (rows, bytes of a row).

    Raises:
        CheckpointError: if the file is missing or damaged, or holds what llmquant does not write.
    """
    try:
        with open_plain(file) as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            cursor = _Cursor(file, stream.read(_MAX_HEADER))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error}); check the path") from error
    if cursor.take(4) != _MAGIC or cursor.number("<I") != _VERSION:
        raise CheckpointError(f"{file}: is no GGUF file of version {_VERSION}")
    tensors, entries = cursor.number("<Q"), cursor.number("<Q")
    metadata = {}
    for _ in range(entries):
        key = cursor.text()
        metadata[key] = cursor.value()
    placed = [cursor.entry() for _ in range(tensors)]
    begin = _padded(cursor.place)
    found = {}
    for entry, offset in placed:
        dtype, shape = entry.stored
        found[entry.name] = TensorInfo(entry.name, dtype, shape, file, begin + offset, begin + offset + entry.bytes)
    if len(metadata) != entries:  # readers differ in which of them they believe
        raise CheckpointError(f"{file}: says something twice in its metadata; the file is damaged")
    if len(found) != tensors or any(info.end > size or info.begin % ALIGNMENT for info in found.values()):
        raise CheckpointError(f"{file}: its {size} bytes do not hold its tensors; the file is damaged or incomplete")
    return metadata, found


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    return struct.pack("<II", _UINT32, value)


class _Cursor:
    """Reads one thing after another; whatever does not fit is a damaged file."""

    def __init__(self, file: Path, raw: bytes) -> None:
        self._file, self._raw, self.place = file, raw, 0

    def take(self, count: int) -> bytes:
        taken = self._raw[self.place : self.place + count]
        if len(taken) < count:
            raise CheckpointError(f"{self._file}: ends inside its header; the file is damaged or incomplete")
        self.place += count
        return taken

    def number(self, kind: str) -> Any:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("<Q")).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self._file}: holds a name that is not UTF-8; the file is damaged") from error

    def value(self) -> Value:
        kind = self.number("<I")
        if kind == _STRING:
            return self.text()
        if kind not in (_UINT32, _FLOAT32):
            raise CheckpointError(f"{self._file}: holds metadata of type {kind}, which llmquant does not write")
        return self.number("<I" if kind == _UINT32 else "<f")

    def entry(self) -> tuple[Entry, int]:
        name, dimensions = self.text(), self.number("<I")
        if dimensions not in (1, 2):
            raise CheckpointError(f"{self._file}: {name!r} has {dimensions} dimensions, which llmquant does not write")
        shape = tuple(self.number("<Q") for _ in range(dimensions))[::-1]
        kind, offset = self.number("<I"), self.number("<Q")
        kinds = {number: found for table in (PLAIN, BLOCK_TYPES) for found, number in table.items()}
        whole = kind in PLAIN.values() or (dimensions == 2 and shape[1] % SIZE == 0)
        if kind not in kinds or not whole:
            raise CheckpointError(f"{self._file}: {name!r} has type {kind}, which llmquant does not write")
        return Entry(name, shape, kinds[kind]), offset
