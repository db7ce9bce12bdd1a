"""A 16-bit checkpoint on disk: its tensors by name, checked when opened, read one at a time.

Reading is a plain file read of just the tensor's bytes. A memory map would be simpler, but the pages it touches count
as resident memory of the process until the kernel takes them back, and the promise is to stay small.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from llmquant.errors import CheckpointError
from llmquant.files import check_name, open_plain, read_json
from llmquant.models.config_file import NAME as CONFIG
from llmquant.models.config_file import ConfigFile
from llmquant.models.hub import PICKLES, locate, pickle_refusal, refuse_adapter
from llmquant.models.safetensors_header import TensorInfo, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Files up to this size are hashed whole by `Checkpoint.fingerprint`; of larger ones, samples.
HASHED_WHOLE = 64 << 20
FILE_SAMPLE = 1 << 20
TENSOR_SAMPLE = 4 << 10


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a model folder. Make one with `Checkpoint.open`.

    Attributes:
        config: what config.json said when the checkpoint was opened; None where there is none.
    """

    folder: Path
    tensors: dict[str, TensorInfo]
    config: ConfigFile | None = None

    @classmethod
    def open(
        cls, source: str | Path, *, revision: str | None = None, allow_quantized: bool = False, code: bool = False
    ) -> Checkpoint:
        """Open a checkpoint and check every header, index entry and file size. Reads no tensor.

        `source` is a folder with model.safetensors or a sharded index, or a hub id, which is fetched, with its Python
        files if `code`. `allow_quantized` opens one that is already quantized, such as one that llmquant wrote.

        Raises:
            CheckpointError: names the file and what is wrong with it.
        """
        folder = locate(source, revision=revision, code=code)
        refuse_adapter(folder)
        config = ConfigFile.read(folder / CONFIG) if (folder / CONFIG).exists() else None
        if config and not allow_quantized:
            refuse_quantized(folder, config.data.get("quantization_config"))
        if (folder / SINGLE).exists():
            tensors = read_header(folder / SINGLE)
        elif (folder / INDEX).exists():
            tensors = _read_shards(folder)
        else:
            raise _no_weights(folder)
        if not tensors:
            raise CheckpointError(f"{folder}: its safetensors hold no tensor")
        return cls(folder, tensors, config)

    def read(self, name: str) -> Tensor:
        """Read one tensor into fresh memory on the CPU.

        Raises:
            CheckpointError: if there is no such tensor, or the file has become shorter since it was opened.
        """
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{self.folder}: has no tensor {name!r}")
        tensor = torch.empty(info.shape, dtype=info.dtype)
        target = tensor.reshape(-1).view(torch.uint8).numpy().data
        try:
            with open_plain(info.file, buffering=0) as stream:
                stream.seek(info.begin)
                while target:
                    count = cast(FileIO, stream).readinto(target)
                    if not count:
                        missing = f"ends {len(target)} bytes before the end of {name!r}"
                        raise CheckpointError(f"{info.file}: {missing}; it was changed or cut, start again")
                    target = target[count:]
        except OSError as error:
            raise CheckpointError(f"{info.file}: cannot read {name!r} ({error.strerror or error})") from error
        return tensor

    def files(self) -> list[Path]:
        """The safetensors files, sorted by name."""
        return sorted({tensor.file for tensor in self.tensors.values()})

    def fingerprint(self) -> str:
        """Identity of the content, used by a resumed run to notice another source; no times or paths go in.

        A sha256 over config.json, the names, dtypes, shapes and places of all tensors, the files' sizes, and their
        bytes: all bytes of files up to 64 MiB; of larger ones 1 MiB at the head, middle and tail and the first 4 KiB
        of every tensor, which costs seconds instead of minutes. So retraining, merging an adapter or casting is
        noticed; a few flipped bits deep inside a large tensor may not be.
        """
        digest = hashlib.sha256()
        digest.update(hashlib.sha256(self.config.text if self.config else b"").digest())
        for name, info in sorted(self.tensors.items()):
            place = [name, str(info.dtype), list(info.shape), info.file.name, info.begin]
            digest.update(json.dumps(place).encode() + b"\n")
        for file in self.files():
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            self._hash_content(file, digest)
        return digest.hexdigest()

    def _hash_content(self, file: Path, digest: hashlib._Hash) -> None:
        size = file.stat().st_size
        with open_plain(file) as stream:
            if size <= HASHED_WHOLE:
                while block := stream.read(FILE_SAMPLE):
                    digest.update(block)
                return
            samples = [(begin, FILE_SAMPLE) for begin in (0, (size - FILE_SAMPLE) // 2, size - FILE_SAMPLE)]
            inside = sorted(tensor.begin for tensor in self.tensors.values() if tensor.file == file)
            for begin, length in samples + [(begin, TENSOR_SAMPLE) for begin in inside]:
                stream.seek(begin)
                digest.update(stream.read(length))


def refuse_quantized(source: str | Path, config: object) -> None:
    """Refuse a model that is quantized already.

    Raises:
        CheckpointError: if there is one.
    """
    if config is None:
        return
    method = config.get("quant_method", "unknown") if isinstance(config, Mapping) else config
    raise CheckpointError(
        f"{source}: is already quantized (config.json has a quantization_config, quant_method {reprlib.repr(method)}); "
        "give the 16-bit model that it was made from"
    )


def _no_weights(folder: Path) -> CheckpointError:
    names = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in names if name.endswith(PICKLES)]
    shards = [name for name in names if name.endswith(".safetensors")]
    if shards:
        found = f"has {', '.join(shards[:3])} but neither {SINGLE} nor {INDEX}; the index is missing, fetch it too"
        return CheckpointError(f"{folder}: {found}")
    if pickles:
        return pickle_refusal(folder, pickles)
    found = f"it holds {', '.join(names[:5])}" if names else "the folder is empty"
    return CheckpointError(
        f"{folder}: no weights ({found}); wanted {SINGLE}, or {INDEX} with its shards. "
        "A hub model without them has only pickle or another format: convert it with transformers' save_pretrained"
    )


def _read_shards(folder: Path) -> dict[str, TensorInfo]:
    index = folder / INDEX
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        count = f"{len(missing)} of {len(shards)} shards that {INDEX} names are missing"
        raise CheckpointError(f"{folder}: {count}: {', '.join(missing[:10])}; fetch them")
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for name, info in read_header(folder / shard).items():
            if name in tensors:
                raise CheckpointError(f"{folder}: {name!r} is in two shards, {tensors[name].file.name} and {shard}")
            if name not in weight_map:
                raise CheckpointError(f"{index}: does not name {name!r}, which {shard} holds; fetch both again")
            tensors[name] = info
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            where = f"; {tensors[name].file.name} does" if name in tensors else ""
            raise CheckpointError(
                f"{index}: says that {shard} holds {name!r}, but it does not{where}; fetch both again"
            )
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map that names the shard of each tensor; fetch it again")
    for name, shard in weight_map.items():
        # A name with a folder in it could lead outside the checkpoint.
        if not isinstance(shard, str) or Path(shard).name != shard or "\0" in shard:
            raise CheckpointError(
                f"{index}: the shard of {name!r} is {reprlib.repr(shard)}, which is not a plain file name"
            )
        check_name(index.parent / shard)
    return weight_map
