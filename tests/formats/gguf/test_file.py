"""The container: what was written is read, what is damaged is named."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from llmquant.errors import CheckpointError
from llmquant.formats.gguf.file import Entry, make_header, read_header
from llmquant.spec import Scheme

ENTRIES = [
    Entry("a.weight", (3,), torch.float32),
    Entry("b.weight", (2, 5), torch.bfloat16),
    Entry("c.weight", (2, 64), Scheme.parse("int4-g32")),
    Entry("d.weight", (1, 32), Scheme.parse("int8-g32")),
    Entry("e.weight", (1, 1), torch.float16),
]
METADATA = {"general.architecture": "llama", "llama.block_count": 7, "llama.eps": 0.5, "naïve": ""}


def write(path: Path, raw: bytes, size: int) -> Path:
    path.write_bytes(raw + b"\0" * (size - len(raw)))
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    raw, size = make_header(METADATA, ENTRIES)
    metadata, tensors = read_header(write(tmp_path / "x.gguf", raw, size))
    assert metadata == METADATA
    assert len(raw) % 32 == 0
    sizes = {"a.weight": 12, "b.weight": 20, "c.weight": 2 * 2 * 18, "d.weight": 34, "e.weight": 2}
    place = len(raw)
    for entry, (name, info) in zip(ENTRIES, tensors.items(), strict=True):
        assert (name, info.begin, info.bytes) == (entry.name, place, sizes[name])
        assert (info.dtype, info.shape) == entry.stored
        place += -(-sizes[name] // 32) * 32
    assert place == size


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    raw, size = make_header(METADATA, ENTRIES)
    whole = raw + b"\0" * (size - len(raw))
    for length in range(0, size - 31, 7):  # up to the padding behind the last tensor
        with pytest.raises(CheckpointError):
            read_header(write(tmp_path / "x.gguf", whole[:length], length))


@pytest.mark.parametrize(
    ("at", "kind", "value", "words"),
    [
        (0, "<I", 7, "is no GGUF file"),
        (4, "<I", 2, "is no GGUF file of version 3"),
        (8, "<Q", 1 << 40, "damaged"),
        (16, "<Q", 1 << 40, "which llmquant does not write|damaged"),
        (24, "<Q", 1 << 60, "damaged"),
    ],
)
def test_a_damaged_header(tmp_path: Path, at: int, kind: str, value: int, words: str) -> None:
    raw, size = make_header(METADATA, ENTRIES)
    damaged = bytearray(raw)
    struct.pack_into(kind, damaged, at, value)
    with pytest.raises(CheckpointError, match=words):
        read_header(write(tmp_path / "x.gguf", bytes(damaged), size))


def test_types_of_others(tmp_path: Path) -> None:
    raw, size = make_header({"key": 1}, [ENTRIES[0]])
    place = raw.index(b"a.weight") + len("a.weight") + 4 + 8
    damaged = bytearray(raw)
    struct.pack_into("<I", damaged, place, 12)  # Q4_K
    with pytest.raises(CheckpointError, match=r"'a\.weight' has type 12, which llmquant does not write"):
        read_header(write(tmp_path / "x.gguf", bytes(damaged), size))
    damaged = bytearray(raw)
    struct.pack_into("<I", damaged, raw.index(b"key") + 3, 7)  # a bool
    with pytest.raises(CheckpointError, match="metadata of type 7"):
        read_header(write(tmp_path / "x.gguf", bytes(damaged), size))


def test_a_tensor_that_is_not_aligned(tmp_path: Path) -> None:
    raw, size = make_header({}, ENTRIES)
    place = raw.index(b"a.weight") + len("a.weight") + 4 + 8 + 4
    for offset, fine in ((32, True), (4, False)):
        moved = bytearray(raw)
        struct.pack_into("<Q", moved, place, offset)
        file = write(tmp_path / "x.gguf", bytes(moved), size)
        if fine:
            read_header(file)
        else:
            with pytest.raises(CheckpointError, match="do not hold its tensors"):
                read_header(file)


def test_metadata_twice(tmp_path: Path) -> None:
    raw, size = make_header({"key": 1, "kez": 2}, ENTRIES)
    with pytest.raises(CheckpointError, match="says something twice in its metadata"):
        read_header(write(tmp_path / "x.gguf", raw.replace(b"kez", b"key"), size))


def test_a_name_twice(tmp_path: Path) -> None:
    raw, size = make_header({}, [ENTRIES[0], ENTRIES[0]])
    with pytest.raises(CheckpointError, match="do not hold its tensors"):
        read_header(write(tmp_path / "x.gguf", raw, size))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "none.gguf")
