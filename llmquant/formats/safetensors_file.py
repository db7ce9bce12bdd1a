"""Writing into a checkpoint folder so that a reader sees a whole file or none, whatever happens in between.

Each file is written under a hidden `.partial` name, flushed to the disk and renamed; a later run overwrites what a
killed one left. The safetensors library could write the tensors too, but under a random name that a kill leaves
behind, readable by its owner only, unflushed, and with the reason of a failure as text.

    8 bytes, length of the header | JSON header, spaces up to a multiple of 8 | tensors, widest dtypes first
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmquant.errors import OutputError, QuantizationError
from llmquant.models.safetensors_header import DTYPES

INDEX = "model.safetensors.index.json"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Left free for the rest of the system beside what we write ourselves.
_SPARE = 1 << 20


def write_shard(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Write one safetensors file, replacing an older one; return its bytes. The same tensors give the same file.

    Tensors may be on any device, and at most one of them is copied at a time. The header's metadata are "format": "pt",
    which transformers asks for, when none are given.

    Raises:
        OutputError: if there is no space, or the file cannot be written; nothing is left of it then.
        QuantizationError: if a tensor has no data, or a scale is zero or not finite.
    """
    for name, tensor in tensors.items():
        _check(name, tensor)
    # Widest first keeps every tensor aligned to its own element size, which readers that map the file rely on.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header = _header(ordered, dict(metadata or {"format": "pt"}))
    size = len(header) + sum(tensor.nbytes for _, tensor in ordered)
    require_space(path.parent, size)
    with _replacing(path) as stream:
        _write_all(stream, memoryview(header))
        for _, tensor in ordered:
            _write_all(stream, tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return size


def write_json_atomic(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, replacing an older one whole.

    Raises:
        OutputError: if it cannot be written; the older one is left as it was.
    """
    write_bytes_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write a file, replacing an older one whole; errors as in `write_json_atomic`."""
    with _replacing(path) as stream:
        _write_all(stream, memoryview(content))


def copy_file(source: Path, path: Path) -> None:
    """Copy a small file, replacing an older one whole; errors as in `write_json_atomic`."""
    with _replacing(path) as stream:
        _write_all(stream, memoryview(source.read_bytes()))


def write_index(folder: Path, weight_map: Mapping[str, str], total_size: int) -> Path:
    """Write the index of a sharded checkpoint: the file of each tensor, and the bytes of all without headers."""
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    write_json_atomic(folder / INDEX, index)
    return folder / INDEX


def require_space(folder: Path, needed: int) -> None:
    """Check that `needed` bytes fit on the disk of a folder.

    Raises:
        OutputError: if they do not; says how much is missing.
    """
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written to ({error.strerror or error}); give another folder") from error
    if free < needed + _SPARE:
        raise OutputError(
            f"{folder}: {_mebibytes(needed)} are needed but {_mebibytes(free)} are free; "
            "free some space or choose a folder on another disk"
        )


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


def _check(name: str, tensor: Tensor) -> None:
    if tensor.is_meta or tensor.layout != torch.strided:
        raise QuantizationError(f"{name}: is a {tensor.layout} tensor on {tensor.device}, without data to write")
    if tensor.dtype not in _NAMES:
        raise QuantizationError(f"{name}: has dtype {tensor.dtype}, which is not written to a checkpoint")
    if name.endswith(".weight_scale"):
        bad = int((~torch.isfinite(tensor) | (tensor == 0)).sum())
        if bad:
            raise QuantizationError(f"{name}: {bad} of {tensor.numel()} scales are zero, infinite or NaN")


def _header(ordered: list[tuple[str, Tensor]], metadata: dict[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for name, tensor in ordered:
        end = begin + tensor.nbytes
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


@contextmanager
def _replacing(path: Path) -> Iterator[FileIO]:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb", buffering=0) as stream:
            yield stream
            os.fsync(stream.fileno())
        os.replace(partial, path)
        _flush_folder(path.parent)
    except OSError as error:
        advice = "what was finished before is intact; make room, or check the folder, and run again with --resume"
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); {advice}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _write_all(stream: FileIO, data: memoryview) -> None:
    # One write call takes at most 2 GiB, and may take less.
    while data:
        data = data[stream.write(data) :]


def _flush_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows has no such thing, and needs none for a rename.
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
