"""The sink of a run: each unit goes to the disk at once, then into the journal; finished ones are read back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from llmquant.engine.drive import Results
from llmquant.engine.layer import dense_weight, digest
from llmquant.engine.output.edits import write_edits
from llmquant.engine.output.journal import Journal, LayerRecord, ShardRecord
from llmquant.engine.output.units import Unit
from llmquant.errors import CheckpointError, OutputError, QuantizationError
from llmquant.formats.base import Writer
from llmquant.models.edits import Edit
from llmquant.models.source import WeightSource
from llmquant.progress import Progress
from llmquant.recipe.plan import MatrixRow, Plan


class FolderSink:
    """Turns results into what the format of a plan makes of them; a `Sink`, see `engine.drive`."""

    def __init__(
        self,
        folder: Path,
        units: Sequence[Unit],
        writer: Writer,
        plan: Plan,
        journal: Journal,
        source: WeightSource,
        progress: Progress,
    ) -> None:
        self._folder, self._writer, self._plan, self._journal = folder, writer, plan, journal
        self._source, self._progress = source, progress
        self._units = {unit.block: unit for unit in units}
        self._known = frozenset(source.tensors)
        self.blocks = tuple(self._units)

    def written(self, block: int | None) -> Callable[[MatrixRow], Tensor] | None:
        """Gives the dequantized weights of a unit that an earlier run finished, as their parameters hold them.

        Raises:
            OutputError: also from what is returned, if a weight is not the one that the journal has a digest of: all
                blocks behind it would be calibrated on the damage.
        """
        unit = self._units[block]
        if unit.file not in self._journal.shards:
            return None
        keys, layers = {row.name: key for row, key in unit.quantized}, self._journal.shards[unit.file].layers
        with self._trusted(unit):
            written = self._writer.written(unit.file)

        def read(row: MatrixRow) -> Tensor:
            key = keys[row.name]
            with self._trusted(unit):
                tensors = {name: written.read(name) for name in self._plan.format.names(key, row.scheme)}
                quantized = written.decode(key.removesuffix(".weight"), tensors, row.scheme)
                if digest(quantized) != layers[row.name].digest:
                    raise CheckpointError(f"{row.name} is not what was written")
            return dense_weight(row, quantized)

        return read

    def emit(self, block: int | None, results: Results, edits: Sequence[Edit]) -> None:
        """Write a unit. The source has applied `edits` already; they reach the disk before what they changed.

        Raises:
            QuantizationError: if they create a tensor, as what goes into which unit is decided before any work.
        """
        unit = self._units[block]
        if created := sorted(self._source.tensors.keys() - self._known):
            raise QuantizationError(
                f"{created[0]}: a transform creates this tensor, for which a folder has no place; transforms of a run "
                "change what the checkpoint holds"
            )
        digest_of_edits = write_edits(self._folder, unit.file, edits) if edits else ""
        quantized, records = {}, {}
        for row, key in unit.quantized:
            result, seconds = results[row.name]
            quantized[key.removesuffix(".weight")] = (result.quantized, row.scheme)
            records[row.name] = LayerRecord(
                row.scheme.name,
                row.rounding.method,
                digest(result.quantized),
                result.loss,
                round(seconds, 3),
                {name: count for name, count in result.counters.items() if count},
            )
        kept = {key: self._source.read(key) for key in unit.copied}
        size, names = self._writer.add(unit.file, quantized, kept)
        self._journal.record(ShardRecord(unit.file, size, sorted(names), records, digest_of_edits))
        for name, record in records.items():
            self._progress.layer(name, record.loss)
        self._progress.step(unit.file, work=unit.work)

    @contextmanager
    def _trusted(self, unit: Unit) -> Iterator[None]:
        try:
            yield
        except CheckpointError as error:
            raise OutputError(
                f"{self._folder}: {unit.file}, which an earlier run finished, is damaged or was misread ({error}); if "
                "--resume says so again, start again with --overwrite"
            ) from error
