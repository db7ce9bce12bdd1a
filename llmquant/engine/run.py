"""`llmquant quantize`: stream a checkpoint through a plan into a finished folder."""

from __future__ import annotations

import copy
import hashlib
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmquant.by_name import is_file
from llmquant.compat.loading import check_complete, check_fits
from llmquant.data.calibration import CalibrationData, check_vocabulary, context_limit, load_calibration
from llmquant.device import resolve_device
from llmquant.engine.drive import Setting, drive, transform_notes
from llmquant.engine.layer import check_statistics
from llmquant.engine.output.edits import read_edits
from llmquant.engine.output.finalize import finalize
from llmquant.engine.output.folder import OutputFolder, is_finished, read_provenance
from llmquant.engine.output.journal import Journal
from llmquant.engine.output.sink import FolderSink
from llmquant.engine.output.units import Unit, contents_of, split_into_units
from llmquant.engine.prepare import Prepared, load_tokenizer
from llmquant.errors import CheckpointError, OutputError
from llmquant.machine import device_name
from llmquant.models.checkpoint import Checkpoint
from llmquant.notebook import default_progress, html_table
from llmquant.progress import Progress
from llmquant.recipe.schema import canonical_json
from llmquant.words import bytes_text

if TYPE_CHECKING:
    from llmquant.recipe.schema import Recipe

_SPACE_MARGIN = 1.02  # headers, config, tokenizer


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run.

    `provenance` is the content of its llmquant.json.
    """

    folder: Path
    provenance: dict[str, Any]

    def _repr_html_(self) -> str:
        plan, layers = self.provenance["plan"], self.provenance["layers"]
        worst = sorted(layers.items(), key=lambda item: -item[1]["loss"])[:5]
        rows = [(name, layer["scheme"], layer["method"], f"{layer['loss']:.3%}") for name, layer in worst]
        title = (
            f"{self.folder}: {bytes_text(plan['bytes_before'])} -> {bytes_text(plan['bytes_after'])}, "
            f"{plan['bits_per_weight']:.2f} bits per weight, {self.provenance['verified_tensors']} tensors verified"
        )
        return html_table(title, ("layers with the largest error", "scheme", "rounding", "error"), rows)


def run(
    prepared: Prepared,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> RunResult:
    """Quantize, write, verify and name the result.

    `out` appears when everything is in it; `resume` continues an interrupted run, `overwrite` drops it, or replaces a
    finished result.

    Raises:
        DeviceError: if there is no such device.
        OutputError: if the result cannot be written; what was done stays for `resume`.
        DataError: if there is no tokenizer, or not enough calibration text.
        QuantizationError: if a weight or a statistic cannot be quantized.
    """
    setting, progress = Setting(resolve_device(device)), progress or default_progress()
    began = time.monotonic()
    with OutputFolder(out) as output:
        output.check(resume=resume, overwrite=overwrite)
        for warning in prepared.plan.warnings:
            progress.note(warning)
        calibration = _calibration(prepared)
        if calibration and calibration.note:
            progress.note(calibration.note)
        identity = run_identity(prepared, calibration, setting.device)
        if resume and is_finished(output.out) and not output.partial.exists():
            finished = already_finished(output, identity)
            progress.note(f"{output.out} was finished by an earlier run, so there was nothing to do")
            return finished
        units = _units(prepared)
        journal = output.begin(identity, resume=resume, overwrite=overwrite)
        _check_space(output, prepared.checkpoint, units, journal)
        work = prepared.work(read_edits(output.partial, journal))
        for note in transform_notes(work):
            progress.note(note)
        contents = contents_of(units, prepared.checkpoint.tensors)
        writer = prepared.plan.format.writer(output.partial, contents, prepared.model.config.to_dict())
        sink = FolderSink(output.partial, units, writer, prepared.plan, journal, work.source, progress)
        done = [unit for unit in units if unit.file in journal.shards]
        left = sum(unit.work for unit in units) - sum(unit.work for unit in done)
        progress.stage("quantize", len(units), unit="shards", work=left)
        for unit in done:
            progress.step(unit.file, work=0)
        windows = calibration.windows if calibration else None
        drive(work, windows, sink, setting)
        finalize(prepared, work.source, units, writer, journal, output, identity, calibration, progress, began)
        return RunResult(output.out, read_provenance(output.out))


def run_identity(prepared: Prepared, calibration: CalibrationData | None, device: torch.device) -> dict[str, Any]:
    """What must be equal for two runs to give the same bytes; a journal is continued only by an identical run."""
    return {
        **surroundings(device),
        "source": prepared.checkpoint.fingerprint(),
        "recipe": canonical_json(prepared.plan.recipe),
        "calibration": calibration.sha256 if calibration else None,
        **own_code(prepared.plan.recipe),
    }


def surroundings(device: torch.device) -> dict[str, Any]:
    """What of software and machine the bytes of a result depend on."""
    return {
        "schema": 1,
        "llmquant": version("llmquant"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "machine": platform.machine(),
        "device": device_name(device),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def own_code(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Hashes of the files of methods that the recipe names by path."""
    methods = {step.method for step in (*recipe.roundings, *recipe.transforms, *recipe.tuning)}
    files = {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in sorted(methods) if is_file(name)}
    return {"code": files} if files else {}


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
    key_map = prepared.key_map
    check_complete(prepared.model, key_map)
    tensors = prepared.checkpoint.tensors
    check_fits(copy.deepcopy(prepared.model), {key: tensors[key].on_meta() for key in key_map.parameter})
    _check_copies(prepared)
    return split_into_units(prepared.plan, prepared.checkpoint.tensors, key_map, prepared.plan.inventory.path)


def _check_copies(prepared: Prepared) -> None:
    """Where a checkpoint has a tied weight twice, one of the two is quantized and the other dropped."""
    keys = {parameter: key for key, parameter in prepared.key_map.parameter.items()}
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


def already_finished(output: OutputFolder, identity: Mapping[str, Any]) -> RunResult:
    """The result that an identical run finished before.

    Raises:
        OutputError: if it was another run.
    """
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
