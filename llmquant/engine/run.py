"""`llmquant quantize`: stream a checkpoint through a plan into a finished folder."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmquant.algorithms.rounding.base import LayerResult
from llmquant.compat.loading import KeyMap, check_complete, check_fits, map_keys
from llmquant.engine.blocks import quantize_blocks, replace_weight
from llmquant.engine.calibration import CalibrationData, check_vocabulary, context_limit, load_calibration
from llmquant.engine.layer import check_statistics
from llmquant.engine.output.finalize import finalize
from llmquant.engine.output.folder import OutputFolder, is_finished, read_provenance
from llmquant.engine.output.journal import Journal
from llmquant.engine.output.units import Unit, contents_of, split_into_units
from llmquant.engine.output.writer import UnitWriter
from llmquant.engine.prepare import Prepared, load_tokenizer
from llmquant.engine.progress import Progress
from llmquant.engine.streaming import StreamedWeights
from llmquant.errors import CheckpointError, OutputError
from llmquant.models.checkpoint import Checkpoint
from llmquant.models.skeleton import decoder_blocks
from llmquant.recipe.schema import canonical_json

_SPACE_MARGIN = 1.02  # headers, config, tokenizer


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the result.
        provenance: the content of its llmquant.json.
    """

    folder: Path
    provenance: dict[str, Any]


def run(
    prepared: Prepared,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Quantize, write, verify and name the result.

    Args:
        prepared: the model and the plan.
        out: folder of the result; it appears when everything is in it.
        resume: continue an interrupted run.
        overwrite: replace a finished result, or drop an interrupted run.
        progress: is told what happens.

    Raises:
        OutputError: if the result cannot be written; what was done stays for `resume`.
        DataError: if there is no tokenizer, or not enough calibration text.
        QuantizationError: if a weight or a statistic cannot be quantized.
    """
    progress = progress or Progress()
    began = time.monotonic()
    with OutputFolder(out) as output:
        output.check(resume=resume, overwrite=overwrite)
        for warning in prepared.plan.warnings:
            progress.note(warning)
        calibration = _calibration(prepared)
        if calibration and calibration.note:
            progress.note(calibration.note)
        identity = run_identity(prepared, calibration)
        if resume and is_finished(output.out) and not output.partial.exists():
            finished = _already_finished(output, identity)
            progress.note(f"{output.out} was finished by an earlier run, so there was nothing to do")
            return finished
        units = _units(prepared)
        journal = output.begin(identity, resume=resume, overwrite=overwrite)
        _check_space(output, prepared.checkpoint, units, journal)
        contents = contents_of(units, prepared.checkpoint.tensors)
        format_writer = prepared.plan.format.writer(output.partial, contents, prepared.model.config.to_dict())
        writer = UnitWriter(format_writer, prepared.plan, journal, prepared.checkpoint, progress)
        _write_units(prepared, units, writer, calibration, progress)
        finalize(prepared, units, format_writer, journal, output, identity, calibration, progress, began)
        return RunResult(output.out, read_provenance(output.out))


def run_identity(prepared: Prepared, calibration: CalibrationData | None) -> dict[str, Any]:
    """What must be equal for two runs to give the same bytes; a journal is continued only by an identical run."""
    return {
        "schema": 1,
        "llmquant": version("llmquant"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "source": prepared.checkpoint.fingerprint(),
        "recipe": canonical_json(prepared.plan.recipe),
        "calibration": calibration.sha256 if calibration else None,
    }


def _calibration(prepared: Prepared) -> CalibrationData | None:
    plan = prepared.plan
    if not check_statistics(plan):
        return None
    assert plan.recipe.calibration is not None  # the recipe's own check
    tokenizer = load_tokenizer(prepared.checkpoint.folder, trust_remote_code=prepared.trust_remote_code)
    data = load_calibration(plan.recipe.calibration, tokenizer, context=context_limit(prepared.model.config))
    check_vocabulary(data.windows, prepared.model)
    return data


def _units(prepared: Prepared) -> list[Unit]:
    path, _ = decoder_blocks(prepared.model)
    key_map = _key_map(prepared)
    check_complete(prepared.model, key_map)
    tensors = prepared.checkpoint.tensors
    check_fits(copy.deepcopy(prepared.model), {key: tensors[key].on_meta() for key in key_map.parameter})
    _check_copies(prepared, key_map)
    return split_into_units(prepared.plan, prepared.checkpoint.tensors, key_map, path)


def _check_copies(prepared: Prepared, key_map: KeyMap) -> None:
    """Where a checkpoint has a tied weight twice, one of the two is quantized and the other dropped."""
    keys = {parameter: key for key, parameter in key_map.parameter.items()}
    for row in prepared.plan.rows:
        names = (f"{row.module.name}.weight", f"{row.module.tied_to}.weight")
        if row.scheme.is_keep or not all(name in keys for name in names):
            continue
        one, other = (prepared.checkpoint.read(keys[name]) for name in names)
        if not torch.equal(one, other):
            raise CheckpointError(
                f"{names[0]} differs from {names[1]}, though config.json ties them (tie_word_embeddings); the weights "
                "and the config do not belong together"
            )


def _key_map(prepared: Prepared) -> KeyMap:
    return map_keys(prepared.model, prepared.checkpoint.tensors)


def _already_finished(output: OutputFolder, identity: Mapping[str, Any]) -> RunResult:
    provenance = read_provenance(output.out)
    if provenance.get("identity") != identity:
        raise OutputError(
            f"{output.out} holds the finished result of a different run; give another folder, or --overwrite"
        )
    output.tidy()
    return RunResult(output.out, provenance)


def _check_space(output: OutputFolder, checkpoint: Checkpoint, units: list[Unit], journal: Journal) -> None:
    done = sum(shard.bytes for shard in journal.shards.values())
    copied = sum(checkpoint.tensors[key].bytes for unit in units for key in unit.copied)
    quantized = sum(row.bytes_after for unit in units for row, _ in unit.quantized)
    output.require_space(int((copied + quantized) * _SPACE_MARGIN) - done)


def _write_units(
    prepared: Prepared, units: list[Unit], writer: UnitWriter, calibration: CalibrationData | None, progress: Progress
) -> None:
    left = sum(unit.work for unit in units if not writer.is_written(unit))
    progress.stage("quantize", len(units), unit="shards", work=left)
    pending = []
    for unit in units:
        if writer.is_written(unit):
            progress.step(unit.file, work=0)
        elif any(row.needs for row, _ in unit.quantized):
            pending.append(unit)
        else:
            writer.write_data_free(unit)
    if pending:
        assert calibration is not None
        _calibrate(prepared, units, writer, calibration)


def _calibrate(prepared: Prepared, units: list[Unit], writer: UnitWriter, calibration: CalibrationData) -> None:
    model = prepared.model
    path, blocks = decoder_blocks(model)
    by_block = {unit.block: unit for unit in units}
    weights = StreamedWeights(model, prepared.checkpoint, _key_map(prepared), path, prepared.plan.inventory.dtype)
    weights.load_outside()
    embeddings = tuple(pair for pair in by_block[None].quantized if pair[0].matrix.table)
    for name, weight in writer.read_dense(replace(by_block[None], quantized=embeddings)).items():
        replace_weight(model.get_submodule(name), weight)
    last = max(unit.block for unit in units if unit.block is not None and not writer.is_written(unit))
    quantize_blocks(
        model,
        model.base_model,
        list(blocks),
        [[row for row, _ in by_block[i].quantized] for i in range(last + 1)],
        calibration.windows,
        scale_dtype=prepared.plan.inventory.dtype,
        weights=weights,
        sink=_UnitSink(by_block, writer),
        captured=weights.release_outside,
    )


class _UnitSink:
    """Writes the blocks of a calibrated run, and finds those that an earlier run wrote."""

    def __init__(self, units: Mapping[int | None, Unit], writer: UnitWriter) -> None:
        self._units, self._writer = units, writer

    def finished(self, index: int) -> Mapping[str, Tensor] | None:
        unit = self._units[index]
        return self._writer.read_dense(unit) if self._writer.is_written(unit) else None

    def emit(self, index: int, results: Mapping[str, tuple[LayerResult, float]]) -> None:
        self._writer.write(self._units[index], results)
