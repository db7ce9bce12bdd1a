from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llmquant.errors import CheckpointError
from llmquant.models import checkpoint
from llmquant.models.checkpoint import INDEX, SINGLE, Checkpoint
from llmquant.models.safetensors_header import DTYPES


def every_dtype() -> dict[str, Tensor]:
    tensors = {}
    for index, (name, dtype) in enumerate(DTYPES.items()):
        raw = torch.randint(0, 2 if dtype is torch.bool else 256, (3, 5 * dtype.itemsize), dtype=torch.uint8)
        tensors[f"t{index}.{name}"] = raw.view(dtype)
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.empty(0, 4)
    return tensors


def same_bytes(a: Tensor, b: Tensor) -> bool:
    raw_a, raw_b = a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw_a, raw_b)


def write_raw(file: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}, tmp_path / SINGLE)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    parts = [{"a": torch.zeros(3), "b": torch.ones(2)}, {"c": torch.full((2,), 2.0)}]
    weight_map = {}
    for index, tensors in enumerate(parts):
        shard = f"model-{index + 1:05}-of-00002.safetensors"
        save_file(tensors, tmp_path / shard)
        weight_map |= dict.fromkeys(tensors, shard)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index)
    (folder / INDEX).write_text(json.dumps(index))


def test_reads_every_dtype_exactly(tmp_path: Path) -> None:
    tensors = every_dtype()
    save_file(tensors, tmp_path / SINGLE)
    opened = Checkpoint.open(tmp_path)
    assert opened.tensors.keys() == tensors.keys()
    assert all(same_bytes(opened.read(name), tensor) for name, tensor in tensors.items())
    assert {name: info.bytes for name, info in opened.tensors.items()} == {k: t.nbytes for k, t in tensors.items()}
    assert opened.files() == [tmp_path / SINGLE]


def test_reads_shards(sharded: Path) -> None:
    opened = Checkpoint.open(str(sharded))
    assert {name: opened.read(name).tolist() for name in sorted(opened.tensors)} == {
        "a": [0, 0, 0],
        "b": [1, 1],
        "c": [2, 2],
    }


def test_the_tensor_is_ours_to_change(single: Path) -> None:
    opened = Checkpoint.open(single)
    opened.read("b").zero_()
    assert opened.read("b").tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{not json", b"", "header is not JSON"),
        (b"\xff\xfe", b"", "header is not JSON"),
        (b"[1]", b"", "not an object"),
        (b'{"a": 1}', b"", "lacks dtype"),
        (b'{"a": {}, "a": {}}', b"", "names 'a' twice"),
        ({"a": entry(0, 4, [1], "F7")}, bytes(4), "unknown dtype 'F7'"),
        ({"a": entry(0, 4, [1], ["F32"])}, bytes(4), "unknown dtype"),  # type: ignore[arg-type]
        ({"a": entry(0, 4, [-1])}, bytes(4), "impossible shape"),
        ({"a": entry(0, 4, [True])}, bytes(4), "impossible shape"),
        ({"a": entry(-4, 0, [1])}, bytes(4), "impossible data_offsets"),
        ({"a": entry(0, 4, [2])}, bytes(4), "= 8 bytes but its offsets hold 4"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}, bytes(8), "'b' overlaps 'a'"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12), "'b' leaves a gap after 'a'"),
        ({"a": entry(4, 8, [1])}, bytes(8), "leaves a gap after the header"),
        ({"a": entry(0, 8, [2])}, bytes(7), "truncated"),
        ({"a": entry(0, 8, [2])}, bytes(9), "1 bytes follow the last tensor"),
        ({}, b"", "hold no tensor"),
    ],
)
def test_damaged_file(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    write_raw(tmp_path / SINGLE, header, data)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("length", [0xFFFFFFFFFFFFFFFF, 100_000_001, 500])
def test_absurd_header_length(tmp_path: Path, length: int) -> None:
    write_raw(tmp_path / SINGLE, {}, length=length)
    with pytest.raises(CheckpointError, match=f"announce a header of {length} bytes"):
        Checkpoint.open(tmp_path)


def test_every_truncation_is_noticed(single: Path) -> None:
    whole = (single / SINGLE).read_bytes()
    for size in range(len(whole)):
        (single / SINGLE).write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=SINGLE):
            Checkpoint.open(single)


def test_flipped_bits_in_the_header_never_crash(single: Path) -> None:
    whole = (single / SINGLE).read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    noticed = 0
    for bit in range(0, 8 * begin, 3):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        (single / SINGLE).write_bytes(changed)
        try:
            Checkpoint.open(single)
        except CheckpointError:
            noticed += 1
    # What stays unnoticed is a letter of a name, or one dtype turned into another of its size.
    assert noticed > 0.9 * 8 * begin / 3


def test_file_cut_after_opening(single: Path) -> None:
    opened = Checkpoint.open(single)
    with (single / SINGLE).open("r+b") as stream:
        stream.truncate(opened.tensors["b"].end - 1)
    with pytest.raises(CheckpointError, match="ends 1 bytes before the end of 'b'"):
        opened.read("b")
    (single / SINGLE).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        opened.read("a")


def test_unknown_tensor(single: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensor 'nope'"):
        Checkpoint.open(single).read("nope")


def test_missing_shards_are_listed(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards .* missing: model-00002-of-00002"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda index: index["weight_map"].pop("b"), "does not name 'b', which model-00001"),
        (lambda index: index["weight_map"].update(z="model-00001-of-00002.safetensors"), "holds 'z', but it does not"),
        (
            lambda index: index["weight_map"].update(a=index["weight_map"]["c"]),
            "'a', but it does not; model-00001.* does",
        ),
        (lambda index: index["weight_map"].update(a="../x.safetensors"), "not a plain file name"),
        (lambda index: index["weight_map"].update(a=1), "not a plain file name"),
        (lambda index: index["weight_map"].update(a="x" * 300), "no file can have this name"),
        (lambda index: index.pop("weight_map"), "has no weight_map"),
    ],
)
def test_index_that_contradicts_its_shards(sharded: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    edit_index(sharded, edit)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(sharded)


def test_tensor_in_two_shards(sharded: Path) -> None:
    save_file({"c": torch.ones(2), "a": torch.ones(3)}, sharded / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="'a' is in two shards"):
        Checkpoint.open(sharded)


def test_index_that_is_not_json(sharded: Path) -> None:
    (sharded / INDEX).write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        Checkpoint.open(sharded)


def test_shards_without_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    with pytest.raises(CheckpointError, match="the index is missing"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.ckpt"])
def test_pickles_are_refused_with_the_safe_way(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match=r"pickle can run any code.*save_pretrained"):
            Checkpoint.open(source)


def test_not_a_model(tmp_path: Path, single: Path) -> None:
    for source, message in [
        (tmp_path / "nowhere", "no such folder"),
        (str(tmp_path / "nowhere"), "no such folder"),
        (single / SINGLE, "give its folder"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            Checkpoint.open(source)
    (single / SINGLE).unlink()
    with pytest.raises(CheckpointError, match="the folder is empty"):
        Checkpoint.open(single)
    (single / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"it holds config\.json"):
        Checkpoint.open(single)


def test_quantized_source(single: Path) -> None:
    (single / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(CheckpointError, match=r"already quantized.*'gptq'.*16-bit model"):
        Checkpoint.open(single)
    assert Checkpoint.open(single, allow_quantized=True).tensors


def test_fingerprint(single: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    config = single / "config.json"
    config.write_text("{}")
    prints = [Checkpoint.open(single).fingerprint()]
    other = tmp_path_factory.mktemp("copy")
    for file in single.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert Checkpoint.open(other).fingerprint() == prints[0]
    config.write_text('{"rope_theta": 1}')
    prints.append(Checkpoint.open(single).fingerprint())
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(4)}, single / SINGLE)
    prints.append(Checkpoint.open(single).fingerprint())
    save_file({"z": torch.zeros(2, 3), "b": torch.ones(4)}, single / SINGLE)
    prints.append(Checkpoint.open(single).fingerprint())
    assert len(set(prints)) == len(prints)

    # A large file: sampled, and every tensor's beginning counts.
    monkeypatch.setattr(checkpoint, "HASHED_WHOLE", 100)
    monkeypatch.setattr(checkpoint, "FILE_SAMPLE", 8)
    monkeypatch.setattr(checkpoint, "TENSOR_SAMPLE", 8)
    tensors = {f"t{index}": torch.zeros(100) for index in range(10)}
    seen = set()
    for changed in [None, *tensors]:
        new = tensors | ({changed: torch.ones(100)} if changed else {})
        save_file(new, single / SINGLE)
        seen.add(Checkpoint.open(single).fingerprint())
    assert len(seen) == 11


def test_memory_stays_at_one_tensor(tmp_path: Path) -> None:
    """Reading one tensor of many must not map or load the others."""
    resource = pytest.importorskip("resource")
    save_file({f"t{index}": torch.zeros(1 << 22) for index in range(8)}, tmp_path / SINGLE)
    opened = Checkpoint.open(tmp_path)
    opened.read("t0")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in opened.tensors:
        opened.read(name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 << 10
