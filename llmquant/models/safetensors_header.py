"""The header of one safetensors file, read and checked without touching the data.

A file is an 8-byte little-endian length, that many bytes of JSON, then the tensors. The JSON maps each name to dtype,
shape and the byte range behind the header. The library's own check runs only when it maps the whole file; ours reads
the header alone, so that a damaged checkpoint of any size is refused before any work.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from llmquant.errors import CheckpointError
from llmquant.files import open_plain

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
# The limit of the safetensors library: a longer header would be refused by every other reader.
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 64


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies.

    `begin` and `end` are the offsets in the file of its first byte, and behind its last.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.end - self.begin

    def on_meta(self) -> torch.Tensor:
        """A tensor of its dtype and shape that holds no data."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Read and check the header of one safetensors file.

    Returns every tensor by name, in the order of the header.

    Raises:
        CheckpointError: if the file is missing, truncated, or its header contradicts itself or the file's size.
    """
    try:
        with open_plain(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            _check_length(file, size, len(prefix), length)
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error}); check the path") from error
    if len(raw) != length:
        raise _damaged(file, f"the header has {len(raw)} of its {length} bytes")
    data = 8 + length
    tensors = {name: _entry(file, name, entry, data) for name, entry in _parse(file, raw).items()}
    _check_layout(file, list(tensors.values()), data, size)
    return tensors


def _damaged(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{file}: {reason}; the file is damaged or incomplete, fetch it again")


def _check_length(file: Path, size: int, prefix: int, length: int) -> None:
    if prefix < 8:
        raise _damaged(file, f"{size} bytes are too few for a safetensors file")
    if length > MAX_HEADER_BYTES:
        raise _damaged(file, f"its first 8 bytes announce a header of {length} bytes (at most {MAX_HEADER_BYTES})")
    if length > size - 8:
        raise _damaged(file, f"its first 8 bytes announce a header of {length} bytes but only {size - 8} follow")


def _parse(file: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise _damaged(file, f"its header names {twice!r} twice")
        return found

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError: of UTF-8, of JSON, of an integer with 4,301 digits
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(file, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(file, f"its header is a JSON {type(header).__name__}, not an object")
    header.pop("__metadata__", None)
    return header


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_addressable(shape: list[int]) -> bool:
    """Whether torch can have the shape; [0, 2**80] has no byte, but a stride that no integer holds."""
    return len(shape) <= MAX_DIMENSIONS and prod(max(size, 1) for size in shape) < 1 << 62


def _entry(file: Path, name: str, entry: object, data: int) -> TensorInfo:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _damaged(file, f"the header entry of {name!r} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise CheckpointError(f"{file}: {name!r} has the unknown dtype {reprlib.repr(dtype)}; known are {known}")
    if not isinstance(shape, list) or not all(map(_is_size, shape)) or not _is_addressable(shape):
        raise _damaged(file, f"{name!r} has the impossible shape {reprlib.repr(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise _damaged(file, f"{name!r} has the impossible data_offsets {reprlib.repr(offsets)}")
    begin, end = offsets
    wanted = prod(shape) * DTYPES[dtype].itemsize
    if end - begin != wanted:
        raise _damaged(file, f"{name!r} is {dtype} {shape} = {wanted} bytes but its offsets hold {end - begin}")
    return TensorInfo(name, DTYPES[dtype], tuple(shape), file, data + begin, data + end)


def _check_layout(file: Path, tensors: list[TensorInfo], data: int, size: int) -> None:
    expected = data
    before = "the header"
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != expected:
            what = "overlaps" if tensor.begin < expected else "leaves a gap after"
            raise _damaged(file, f"the data of {tensor.name!r} {what} {before}")
        expected, before = tensor.end, repr(tensor.name)
    if size < expected:
        raise _damaged(file, f"it is truncated: {size} of {expected} bytes")
    if size > expected:
        raise _damaged(file, f"{size - expected} bytes follow the last tensor")
