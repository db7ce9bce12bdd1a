"""A folder of compressed-tensors: one safetensors shard for each unit, an index, and what config.json says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from llmquant.errors import CheckpointError
from llmquant.formats.base import Content, Planned
from llmquant.formats.compressed_tensors import codec, reference
from llmquant.formats.compressed_tensors.config import model_quantization_config, schemes_of
from llmquant.formats.safetensors_file import write_index, write_shard
from llmquant.models.checkpoint import Checkpoint
from llmquant.models.safetensors_header import TensorInfo, read_header
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme


@dataclass(frozen=True)
class Shards:
    """A folder, or one shard; see `base.Written`."""

    checkpoint: Checkpoint

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self.checkpoint.tensors

    @property
    def metadata(self) -> Mapping[str, Any]:
        return {}

    def schemes(self) -> Mapping[str, Scheme]:
        config = self.checkpoint.config
        stored = config.data.get("quantization_config") if config else None
        if not stored:
            raise CheckpointError(
                f"{self.checkpoint.folder}: is not quantized (config.json has no quantization_config); give a "
                "quantized folder"
            )
        table = schemes_of(stored)
        bases = [name.removesuffix(".weight_scale") for name in self.tensors if name.endswith(".weight_scale")]
        found = {base: table.scheme_for(base) for base in bases}
        return {base: scheme for base, scheme in found.items() if scheme and not scheme.is_keep}

    def read(self, name: str) -> Tensor:
        return self.checkpoint.read(name)

    def decode(self, name: str, tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedTensor:
        return codec.decode(name, tensors, scheme)

    def decode_reference(self, name: str, tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedTensor:
        return reference.decode_reference(name, tensors, scheme)

    def restore(self, key: str, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        return tensor


class ShardWriter:
    """See `base.Writer`."""

    def __init__(self, folder: Path, contents: Mapping[str, Content]) -> None:
        self._folder, self._contents = folder, contents

    def add(
        self, file: str, quantized: Mapping[str, tuple[QuantizedTensor, Scheme]], kept: Mapping[str, Tensor]
    ) -> tuple[int, list[str]]:
        tensors = dict(kept)
        for name, (weight, scheme) in quantized.items():
            tensors |= codec.encode(name, weight, scheme)
        path = self._folder / file
        write_shard(path, tensors)
        return path.stat().st_size, sorted(tensors)

    def written(self, file: str) -> Shards:
        return Shards(Checkpoint(self._folder, read_header(self._folder / file)))

    def finish(self, plan: Planned, config: dict[str, Any], files: Mapping[str, Sequence[str]]) -> None:
        weight_map = {name: file for file, names in files.items() for name in names}
        total = sum(tensor.bytes for file in files for tensor in read_header(self._folder / file).values())
        write_index(self._folder, weight_map, total)
        config["quantization_config"] = model_quantization_config(plan, self._contents)
