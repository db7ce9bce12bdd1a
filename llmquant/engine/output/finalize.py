"""The end of a run: config, tokenizer and index beside the shards, verification, provenance, the final name."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llmquant.engine.calibration import CalibrationData
from llmquant.engine.memory import peak_resident_bytes
from llmquant.engine.output.folder import PROVENANCE, OutputFolder
from llmquant.engine.output.journal import Journal
from llmquant.engine.output.units import Unit
from llmquant.engine.output.verify import hash_file, verify
from llmquant.engine.prepare import Prepared, small_files
from llmquant.engine.progress import Progress
from llmquant.formats.compressed_tensors.config import quantization_config
from llmquant.formats.safetensors_file import copy_file, write_index, write_json_atomic
from llmquant.models.config_file import NAME as CONFIG
from llmquant.models.inventory import ModuleInfo
from llmquant.models.safetensors_header import TensorInfo, read_header
from llmquant.recipe.plan import Plan
from llmquant.recipe.schema import recipe_to_dict


def finalize(
    prepared: Prepared,
    units: Sequence[Unit],
    journal: Journal,
    output: OutputFolder,
    identity: dict[str, Any],
    calibration: CalibrationData | None,
    progress: Progress,
    began: float,
) -> None:
    """Complete and verify OUT.partial, then give it its name.

    Args:
        prepared: the model and the plan.
        units: all units; each has its shard.
        journal: of the run.
        output: the folder.
        identity: of the run.
        calibration: what the statistics were collected on, if any.
        progress: is told what happens.
        began: `time.monotonic()` at the start.
    """
    folder = output.partial
    weight_map = {name: shard.file for shard in journal.shards.values() for name in shard.tensors}
    total = sum(tensor.bytes for file in journal.shards for tensor in read_header(folder / file).values())
    write_index(folder, weight_map, total)
    copied = small_files(prepared.checkpoint.folder, code=prepared.trust_remote_code)
    for path in copied:
        copy_file(path, folder / path.name)
    assert prepared.checkpoint.config is not None  # `prepare` needs it
    config = copy.deepcopy(prepared.checkpoint.config.data)
    if not prepared.trust_remote_code:
        config.pop("auto_map", None)  # its files do not come along
    if config.get("dtype") is None and config.get("torch_dtype") is None:
        config["dtype"] = str(prepared.plan.inventory.dtype).removeprefix("torch.")
    config["quantization_config"] = model_quantization_config(prepared.plan, units, prepared.checkpoint.tensors)
    write_json_atomic(folder / CONFIG, config)
    progress.stage("verify", len(units), unit="shards")
    hashes = verify(folder, units, journal, prepared.checkpoint, progress)
    layers = {name: asdict(record) for shard in journal.shards.values() for name, record in shard.layers.items()}
    provenance = {
        "schema_version": 1,
        "identity": identity,
        "source": prepared.source,
        "recipe": recipe_to_dict(prepared.plan.recipe),
        "plan": prepared.plan.to_dict(),
        "calibration": _describe(calibration),
        "layers": layers,
        "counters": _total_counters(layers),
        "verified_tensors": len(hashes),
        "tensors": dict(sorted(hashes.items())),
        "files": {name: hash_file(folder / name) for name in (CONFIG, *(path.name for path in copied))},
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": peak_resident_bytes(),
    }
    write_json_atomic(folder / PROVENANCE, provenance)
    output.finish()


def model_quantization_config(
    plan: Plan, units: Sequence[Unit] = (), tensors: Mapping[str, TensorInfo] | None = None
) -> dict[str, Any]:
    """The `quantization_config` of a model that was quantized by `plan`.

    Args:
        plan: what became of each module, by its name in the causal language model.
        units: the same by the names in the checkpoint, which may hold more: a vision tower, draft layers.
        tensors: of the checkpoint.
    """
    schemes = {row.module.name: row.scheme for row in plan.quantized}
    kept = [row.module.name for row in plan.rows if row.scheme.is_keep and _is_matrix(row.module)]
    for unit in units:
        schemes |= {key.removesuffix(".weight"): row.scheme for row, key in unit.quantized}
        weights = (key for key in unit.copied if key.endswith(".weight") and len((tensors or {})[key].shape) == 2)
        kept += [key.removesuffix(".weight") for key in weights]
    embeddings = any(row.matrix.table for row in plan.quantized)
    return quantization_config(schemes, list(dict.fromkeys(kept)), embeddings=embeddings)


def _is_matrix(module: ModuleInfo) -> bool:
    return module.kind in ("linear", "conv1d", "embedding", "router") or "lm_head" in module.sets


def _describe(calibration: CalibrationData | None) -> dict[str, Any] | None:
    if calibration is None:
        return None
    samples, length = calibration.windows.shape
    return {"sha256": calibration.sha256, "samples": samples, "length": length, "note": calibration.note}


def _total_counters(layers: dict[str, dict[str, Any]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for layer in layers.values():
        for name, count in layer["counters"].items():
            totals[name] = totals.get(name, 0) + count
    return totals
