"""Writing units: encode, write the shard at once, then note it in the journal; and reading finished ones back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from llmquant.algorithms.rounding.base import LayerResult
from llmquant.engine.layer import dense_weight, digest, quantize_layer
from llmquant.engine.output.journal import Journal, LayerRecord, ShardRecord
from llmquant.engine.output.units import Unit
from llmquant.engine.progress import Progress
from llmquant.formats.compressed_tensors.codec import decode, encode, suffixes
from llmquant.formats.safetensors_file import write_shard
from llmquant.models.checkpoint import Checkpoint
from llmquant.models.safetensors_header import read_header


class ShardWriter:
    """Turns units into shards of the folder that a run works in."""

    def __init__(
        self, folder: Path, journal: Journal, checkpoint: Checkpoint, scale_dtype: torch.dtype, progress: Progress
    ) -> None:
        self._folder, self._journal, self._checkpoint = folder, journal, checkpoint
        self._scale_dtype, self._progress = scale_dtype, progress

    def is_written(self, unit: Unit) -> bool:
        """Whether an earlier run finished this unit."""
        return unit.file in self._journal.shards

    def write_data_free(self, unit: Unit) -> None:
        """Quantize a unit tensor by tensor, without calibration data, and write it."""
        results = {}
        for row, key in unit.quantized:
            began = time.monotonic()
            result = quantize_layer(row, self._checkpoint.read(key), None, self._scale_dtype)
            results[row.name] = (result, time.monotonic() - began)
        self.write(unit, results)

    def write(self, unit: Unit, results: Mapping[str, tuple[LayerResult, float]]) -> None:
        """Write a unit whose layers have been quantized.

        Args:
            unit: the unit.
            results: by module name, each layer's result and the seconds it took.
        """
        tensors = {key: self._checkpoint.read(key) for key in unit.copied}
        records = {}
        for row, key in unit.quantized:
            result, seconds = results[row.name]
            tensors |= encode(key.removesuffix(".weight"), result.quantized, row.scheme)
            records[row.name] = LayerRecord(
                row.scheme.name,
                row.rounding.method,
                digest(result.quantized),
                result.loss,
                round(seconds, 3),
                {name: count for name, count in result.counters.items() if count},
            )
        path = self._folder / unit.file
        write_shard(path, tensors)
        self._journal.record(ShardRecord(unit.file, path.stat().st_size, sorted(tensors), records))
        for name, record in records.items():
            self._progress.layer(name, record)
        self._progress.step(unit.file, work=unit.work)

    def read_dense(self, unit: Unit) -> dict[str, Tensor]:
        """The dequantized weights of a finished unit, as its modules hold them."""
        shard = Checkpoint(self._folder, read_header(self._folder / unit.file), 0)
        dense = {}
        for row, key in unit.quantized:
            name = key.removesuffix(".weight")
            tensors = {n: shard.read(n) for n in (f"{name}.{suffix}" for suffix in suffixes(row.scheme))}
            dense[row.name] = dense_weight(row, decode(name, tensors, row.scheme))
        return dense
