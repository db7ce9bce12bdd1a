"""Size: bytes of a checkpoint on disk, of a model in memory, and at the peak of a piece of work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmquant.errors import CheckpointError, RecipeError
from llmquant.eval.metrics import base
from llmquant.eval.metrics.base import NOTHING, Cell, Column
from llmquant.eval.scoring import score_window
from llmquant.memory import peak_rss_of
from llmquant.words import bytes_text, number

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llmquant.data.windows import Windows
    from llmquant.eval.pair import Facts, Pair
    from llmquant.eval.result import EvalReport

PLACE = 10
ALONE = True
LIMITS = {"bits_per_weight": ("bits", "quantized.bits_per_weight")}


@dataclass(frozen=True)
class ModelMemory:
    """Of one model: its files, its parameters and buffers, and the rise of the peak while one window is scored."""

    checkpoint_bytes: int | None
    bits_per_weight: float | None
    parameter_bytes: int
    working_bytes: int | None
    note: str


@dataclass(frozen=True)
class Section(base.Section):
    """Sizes of both models, of one without a baseline; `parameters` are the weights that they stand for."""

    parameters: int
    baseline: ModelMemory | None
    quantized: ModelMemory

    @property
    def ratio(self) -> float | None:
        """How many times smaller the quantized checkpoint is."""
        before, after = self.baseline and self.baseline.checkpoint_bytes, self.quantized.checkpoint_bytes
        return before / after if before and after else None


def check(facts: Facts, options: base.NoOptions) -> None:
    """Folders must hold complete checkpoints, and a limit on their size needs one."""
    for folder in (facts.subject.baseline_folder, facts.subject.folder):
        if folder is not None:
            checkpoint_size(folder)
    if "bits_per_weight" in facts.limits and facts.subject.folder is None:
        raise RecipeError("the budget bits_per_weight needs the checkpoint's folder, and none was given")


def measure(pair: Pair, options: base.NoOptions) -> Section:
    """Sizes of both models, and what scoring one window takes."""
    parameters, subject = pair.parameters, pair.subject
    with pair.as_stored():
        if pair.alone:
            return Section(parameters, None, _first(pair.quantized, subject.folder, parameters, pair.windows))
        before = pair.once("memory", lambda: _first(pair.baseline, subject.baseline_folder, parameters, pair.windows))
        return Section(parameters, before, _memory(pair.quantized, subject.folder, parameters, pair.windows))


def _first(model: PreTrainedModel, *facts: Any) -> ModelMemory:
    score_window(model, facts[-1])  # the first forward of a process also pays for the libraries it loads
    return _memory(model, *facts)


def _memory(model: PreTrainedModel, folder: Path | None, parameters: int, windows: Windows) -> ModelMemory:
    files, tensors = (None, None) if folder is None else checkpoint_size(folder)
    rise, note = measure_memory(model, partial(score_window, model, windows))
    bits = None if tensors is None else 8 * tensors / parameters
    return ModelMemory(files, bits, parameter_bytes(model), rise, note)


def columns(section: Section, report: EvalReport) -> list[Column]:
    """Size and bits per weight."""
    before, after = section.baseline, section.quantized
    of = ", those of the baseline" if before else ""
    note = (
        "Bytes of the safetensors files (decimal units). Bits per weight count all stored tensors, scales, zeros and "
        f"16-bit parts included, over {section.parameters:,} weights{of}. "
        f"In memory: parameters and buffers, shared storage once; at work: one window is scored ({after.note})."
    )
    smaller = report.quantized.dtype if section.ratio is None else f"{number(section.ratio)}× smaller"
    sizes, bits = (NOTHING, NOTHING)
    if before and report.baseline:
        sizes, bits = _size(before, report.baseline.dtype), Cell(number(before.bits_per_weight))
    return [
        Column("size", note, sizes, _size(after, smaller)),
        Column("bits/weight", note, bits, Cell(number(after.bits_per_weight))),
    ]


def _size(memory: ModelMemory, said: str) -> Cell:
    at_work = "" if memory.working_bytes is None else f"+ {bytes_text(memory.working_bytes)} at work"
    more = (said, f"{bytes_text(memory.parameter_bytes)} in memory", at_work)
    return Cell(bytes_text(memory.checkpoint_bytes), more=more)


def words(section: Section, report: EvalReport) -> list[str]:
    """Bits per weight, and how many times smaller."""
    bits = section.quantized.bits_per_weight
    found = [] if bits is None else [f"{number(bits)} bits per weight"]
    return found if section.ratio is None else [*found, f"{number(section.ratio)}x smaller"]


def checkpoint_size(folder: Path) -> tuple[int, int]:
    """Bytes of the safetensors files that a folder's index names (or of all without an index), and of their tensors.

    Raises:
        CheckpointError: if there is none, or one is missing or truncated.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())]
    else:
        files = list(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: no safetensors files; give a folder that holds a model")
    totals, tensors = zip(*map(_file_size, sorted(files)), strict=True)
    return sum(totals), sum(tensors)


def _file_size(file: Path) -> tuple[int, int]:
    """Bytes of a file and of its tensors: all but the 8-byte length and the JSON header."""
    if not file.is_file():
        raise CheckpointError(f"{file}: named by the index, but missing; copy the checkpoint again")
    total = file.stat().st_size
    with file.open("rb") as stream:
        header = 8 + int.from_bytes(stream.read(8), "little")
    if total < header:
        raise CheckpointError(f"{file}: truncated: {total} bytes, its header alone needs {header}; copy it again")
    return total, total - header


def parameter_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers; memory shared by tied tensors counts once."""
    sizes = {}
    for tensor in (*model.parameters(), *model.buffers()):
        # By where a tensor begins: prepared weights share a storage that is larger than all of them.
        sizes[tensor.data_ptr(), tensor.device] = tensor.nbytes
    return sum(sizes.values())


def measure_memory(model: PreTrainedModel, work: Callable[[], object]) -> tuple[int | None, str]:
    """How far memory rises while `work` runs (one window scored by a model), and how that was measured."""
    device = model.device.type
    if device in ("cuda", "xpu"):
        tells = getattr(torch, device)
        tells.synchronize(model.device)
        tells.reset_peak_memory_stats(model.device)
        before = tells.memory_allocated(model.device)
        work()
        rise = tells.max_memory_allocated(model.device) - before
        return rise, "rise of the peak of GPU memory allocated by torch"
    peak = peak_rss_of(work)
    return peak.rise_bytes, peak.note
