"""The folders that clients get: the quantized result and its dense twin, which holds what the result should mean."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from cases import Case, recipe_of
from safetensors.torch import save_file
from torch import Tensor

from llmquant.api import plan, quantize
from llmquant.formats.compressed_tensors.readers import Verdict, readers
from llmquant.formats.compressed_tensors.reference import decode_reference
from llmquant.models.checkpoint import Checkpoint
from llmquant.recipe.plan import Plan


@dataclass(frozen=True, slots=True)
class Folders:
    """A case, ready for the clients.

    Attributes:
        case: what it is of.
        folder: the quantized result.
        twin: the source's tensors, with the quantized weights dequantized, and the source's config.
        verdicts: of the plan, by reader.
        quantized: number of quantized layers.
        activations: names of the layers with 8-bit activations.
        vocabulary: size of it.
        bits_per_weight: of the whole result.
        negative_scales: share of all scales that are below zero.
    """

    case: Case
    folder: Path
    twin: Path
    verdicts: dict[str, Verdict]
    quantized: int
    activations: list[str]
    vocabulary: int
    bits_per_weight: float
    negative_scales: float


def make_folders(case: Case, data: Path, work: Path) -> Folders:
    """Quantize a model of the test data, and write the twin."""
    source = data / "models" / case.model
    if case.dtype:
        source = _cast(source, getattr(torch, case.dtype), work / f"{case.model}@{case.dtype}")
    recipe = recipe_of(case, data)
    planned = plan(source, recipe)
    folder = work / case.name
    quantize(source, recipe, folder, overwrite=True)
    twin = work / f"{case.name}--dense"
    scales = _write_twin(source, folder, planned, twin)
    return Folders(
        case,
        folder,
        twin,
        readers(planned),
        len(planned.quantized),
        [row.module.name for row in planned.quantized if row.scheme.activations],
        json.loads((source / "config.json").read_text(encoding="utf-8"))["vocab_size"],
        planned.bits_per_weight,
        (scales < 0).double().mean().item(),
    )


def _write_twin(source: Path, folder: Path, planned: Plan, twin: Path) -> Tensor:
    """Write the twin, from the decoder that shares no code with our packing; returns all scales."""
    before, after = Checkpoint.open(source), Checkpoint.open(folder, allow_quantized=True)
    tensors = {name: before.read(name) for name in before.tensors}
    scales = []
    for row in planned.quantized:
        name = row.module.name
        stored = {key: after.read(key) for key in after.tensors if key.startswith(f"{name}.")}
        quantized = decode_reference(name, stored, row.scheme)
        original = tensors[f"{name}.weight"]
        dense = quantized.dequantize()
        assert (dense.dtype, dense.shape) == (original.dtype, original.shape)
        tensors[f"{name}.weight"] = dense
        scales.append(quantized.scales.flatten())
    twin.mkdir(parents=True, exist_ok=True)
    save_file(tensors, twin / "model.safetensors", {"format": "pt"})
    shutil.copy(source / "config.json", twin)
    return torch.cat(scales)


def _cast(source: Path, dtype: torch.dtype, target: Path) -> Path:
    """A copy of a model in another dtype."""
    checkpoint = Checkpoint.open(source)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: checkpoint.read(name).to(dtype) for name in checkpoint.tensors}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for path in source.glob("tokenizer*"):
        shutil.copyfile(path, target / path.name)
    return target
