"""The end of a run: config, tokenizer and index beside the shards, verification, provenance, the final name."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llmquant.data.calibration import CalibrationData
from llmquant.engine.output.folder import PROVENANCE, OutputFolder
from llmquant.engine.output.journal import Journal
from llmquant.engine.output.units import Unit
from llmquant.engine.output.verify import hash_file, verify
from llmquant.engine.prepare import Prepared, small_files
from llmquant.formats.base import Writer
from llmquant.formats.safetensors_file import copy_file, write_json_atomic
from llmquant.memory import peak_resident_bytes
from llmquant.models.config_file import NAME as CONFIG
from llmquant.models.edits import edited_config
from llmquant.models.source import Edited
from llmquant.progress import Progress
from llmquant.recipe.plan import Plan
from llmquant.recipe.schema import recipe_to_dict
from llmquant.words import dtype_name


def finalize(
    prepared: Prepared,
    source: Edited,
    units: Sequence[Unit],
    writer: Writer,
    journal: Journal,
    output: OutputFolder,
    identity: dict[str, Any],
    calibration: CalibrationData | None,
    progress: Progress,
    began: float,
) -> None:
    """Complete and verify OUT.partial, then give it its name.

    `began` is `time.monotonic()` at the start of the run.
    """
    folder = output.partial
    copied = small_files(prepared.checkpoint.folder, code=prepared.trust_remote_code)
    for path in copied:
        copy_file(path, folder / path.name)
    assert prepared.checkpoint.config is not None  # `prepare` needs it
    config = edited_config(prepared.checkpoint.config.data, source.edits)
    if not prepared.trust_remote_code:
        config.pop("auto_map", None)  # its files do not come along
    if config.get("dtype") is None and config.get("torch_dtype") is None:
        config["dtype"] = dtype_name(prepared.plan.inventory.dtype)
    writer.finish(prepared.plan, config, {shard.file: shard.tensors for shard in journal.shards.values()})
    write_json_atomic(folder / CONFIG, config)
    progress.stage("verify", len(units), unit="shards")
    hashes = verify(folder, units, journal, source, prepared.plan.format, progress)
    layers = {name: asdict(record) for shard in journal.shards.values() for name, record in shard.layers.items()}
    provenance = describe(prepared.plan, prepared.source, identity, calibration, layers) | {
        "verified_tensors": len(hashes),
        "tensors": dict(sorted(hashes.items())),
        "metadata": dict(prepared.plan.format.open(folder).metadata),
        "files": {name: hash_file(folder / name) for name in (CONFIG, *(path.name for path in copied))},
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": peak_resident_bytes(),
    }
    write_json_atomic(folder / PROVENANCE, provenance)
    output.finish()


def describe(
    plan: Plan,
    source: str,
    identity: Mapping[str, Any],
    calibration: CalibrationData | None,
    layers: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What llmquant.json says of how a model was made; what it says of its files comes beside it."""
    return {
        "schema_version": 1,
        "identity": dict(identity),
        "source": source,
        "recipe": recipe_to_dict(plan.recipe),
        "plan": plan.to_dict(),
        "calibration": _describe(calibration),
        "layers": dict(layers),
        "counters": _total_counters(layers),
    }


def _describe(calibration: CalibrationData | None) -> dict[str, Any] | None:
    if calibration is None:
        return None
    samples, length = calibration.windows.shape
    return {"sha256": calibration.sha256, "samples": samples, "length": length, "note": calibration.note}


def _total_counters(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for layer in layers.values():
        for name, count in layer["counters"].items():
            totals[name] = totals.get(name, 0) + count
    return totals
