from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from llmquant.errors import OutputError, QuantizationError
from llmquant.formats import safetensors_file as shard
from llmquant.formats.safetensors_file import INDEX, write_index, write_json_atomic, write_shard
from llmquant.models.safetensors_header import DTYPES, read_header


def tensors() -> dict[str, torch.Tensor]:
    return {
        "b.weight_packed": torch.randint(-9, 9, (4, 6), dtype=torch.int32),
        "b.weight_scale": torch.rand(4, 2).bfloat16() + 1,
        "b.weight_shape": torch.tensor([4, 48]),
        "a": torch.rand(5, 3).T,
        "c": torch.rand(3).half(),
        "d": torch.tensor([True, False, True]),
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "e8": torch.rand(7).to(torch.float8_e4m3fn),
        "name with ü": torch.zeros(3, dtype=torch.int8),
        "zeros are fine": torch.zeros(3),
    }


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    wanted = tensors()
    size = write_shard(path, wanted)
    assert path.stat().st_size == size
    found = load_file(path)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(
            found[name].view(torch.uint8) if name == "e8" else found[name],
            tensor.view(torch.uint8) if name == "e8" else tensor,
        )
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_tensors_are_aligned(tmp_path: Path) -> None:
    wanted = tensors()
    write_shard(tmp_path / "x", wanted)
    raw = (tmp_path / "x").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    for name, tensor in wanted.items():
        assert header[name]["data_offsets"][0] % tensor.itemsize == 0


def test_order_of_the_dict_does_not_matter(tmp_path: Path) -> None:
    wanted = tensors()
    write_shard(tmp_path / "a", wanted, {"format": "pt", "x": "y"})
    write_shard(tmp_path / "b", dict(reversed(wanted.items())), {"format": "pt", "x": "y"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_scales_that_cannot_be(tmp_path: Path, bad: float) -> None:
    with pytest.raises(QuantizationError, match=r"m\.weight_scale: 1 of 2 scales"):
        write_shard(tmp_path / "x", {"m.weight_scale": torch.tensor([1.0, bad])})
    assert not list(tmp_path.iterdir())


def test_tensors_without_data(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"a: is a .* on meta"):
        write_shard(tmp_path / "x", {"a": torch.empty(3, device="meta")})
    with pytest.raises(QuantizationError, match="complex128"):
        write_shard(tmp_path / "x", {"a": torch.zeros(3, dtype=torch.complex128)})


def test_whatever_can_be_read_can_be_copied(tmp_path: Path) -> None:
    wanted = {word: torch.arange(16, dtype=torch.uint8).view(dtype) for word, dtype in DTYPES.items() if word != "BOOL"}
    write_shard(tmp_path / "x", wanted)
    assert {name: info.dtype for name, info in read_header(tmp_path / "x").items()} == {
        word: DTYPES[word] for word in wanted
    }
    assert load_file(tmp_path / "x").keys() == wanted.keys()


def test_space_is_checked_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shard.shutil, "disk_usage", lambda _: usage._replace(free=3 << 20))
    write_shard(tmp_path / "fits", {"a": torch.zeros(1 << 18)})
    with pytest.raises(OutputError, match=r"4\.0 MiB are needed but 3\.0 MiB are free"):
        write_shard(tmp_path / "large", {"a": torch.zeros(1 << 20)})
    assert [file.name for file in tmp_path.iterdir()] == ["fits"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_shard(tmp_path / "no" / "x", {"a": torch.zeros(1)})
    with pytest.raises(OutputError, match="cannot be written"):
        write_json_atomic(tmp_path / "no" / "x", {})


# Runs in another process: writes a good file, then one that does not fit, and reports what is left.
FULL_DISK = """
import sys
from pathlib import Path
import torch
from llmquant.errors import OutputError
from llmquant.formats import safetensors_file as shard
folder = Path(sys.argv[1])
if sys.argv[2] == "limit":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
shard.require_space = lambda folder, needed: None
shard.write_shard(folder / "good", {"a": torch.ones(1 << 16)})
for size in (1 << 19, 1 << 16 if sys.argv[2] == "limit" else 1 << 19):
    try:
        shard.write_shard(folder / "good", {"a": torch.zeros(1 << 10), "b": torch.zeros(size)})
    except OutputError as error:
        print(error)
from safetensors.torch import load_file
print(sorted(file.name for file in folder.iterdir()), sorted(load_file(folder / "good")))
"""


def full_disk(folder: Path, kind: str, *prefix: str) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", FULL_DISK, str(folder), kind]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.skipif(sys.platform != "linux", reason="needs file size limits of Linux")
def test_failing_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    done = full_disk(tmp_path, "limit")
    lines = done.stdout.splitlines()
    assert "cannot be written (File too large)" in lines[0], done.stderr
    # The second, smaller write succeeds: nothing of the first is in its way.
    assert lines[1:] == ["['good'] ['a', 'b']"]


def test_disk_full_in_the_middle(tmp_path: Path) -> None:
    mount = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o size=1m full "$0" && exec "$@"',
        str(tmp_path),
    ]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here")
    done = full_disk(tmp_path, "tmpfs", *mount)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert all(
        "cannot be written (No space left on device); what was finished before is intact" in line for line in lines[:2]
    )
    assert lines[2] == "['good'] ['a']"


def test_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    write_json_atomic(tmp_path / "x.json", {"old": 1})
    monkeypatch.setattr(shard, "_write_all", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_json_atomic(tmp_path / "x.json", {"new": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    assert json.loads((tmp_path / "x.json").read_text()) == {"old": 1}


def test_partial_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def __init__(self) -> None:
            self.data = b""

        def write(self, data: memoryview) -> int:
            self.data += bytes(data[:3])
            return min(3, len(data))

    slow = Slow()
    shard._write_all(slow, memoryview(b"0123456789"))  # type: ignore[arg-type]
    assert slow.data == b"0123456789"


def test_index_and_mode(tmp_path: Path) -> None:
    write_index(tmp_path, {"b": "2", "a": "1"}, 12)
    index = json.loads((tmp_path / INDEX).read_text())
    assert list(index["weight_map"]) == ["a", "b"]
    assert index["metadata"] == {"total_size": 12}
    write_shard(tmp_path / "x", {"a": torch.ones(1)})
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask
