"""Quantizing a model that is loaded already, with the same numbers as a run that streams its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmquant.algorithms.rounding.base import LayerResult
from llmquant.compat.remote_code import runs_remote_code
from llmquant.device import resolve_device
from llmquant.engine.drive import Results, Setting, drive
from llmquant.engine.kept import KeptResults
from llmquant.engine.layer import dense_weight
from llmquant.engine.weights import Work
from llmquant.models.edits import Edit
from llmquant.models.skeleton import build_skeleton
from llmquant.models.source import Edited, Loaded
from llmquant.notebook import default_progress
from llmquant.progress import Progress
from llmquant.recipe.plan import MatrixRow, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantize_loaded(
    model: PreTrainedModel,
    plan: Plan,
    windows: Tensor | None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    kept: Path | None = None,
) -> QuantizedInMemory:
    """Quantize what a plan names in `model`, which itself is not changed.

    The model is in the dtype of its checkpoint. `windows` (samples, length) are calibration token ids; None where
    nothing needs them. `kept` is a folder for finished blocks, of this model and plan only: what is there already is
    not made again.

    Raises:
        DeviceError: if there is no such device.
        OutputError: if `kept` cannot be written.
        QuantizationError: if a weight or a statistic cannot be quantized.
    """
    source = Loaded(model)
    skeleton = build_skeleton(model.config, trust_remote_code=runs_remote_code(model))
    work = Work(skeleton, plan, Edited(source), {name: name for name in source.tensors}, converted=False)
    store = None if kept is None else KeptResults(kept, windows)
    sink = QuantizedInMemory([None, *range(len(work.blocks))], progress, store)
    work.source.extend(sink.edits)
    drive(work, windows, sink, Setting(resolve_device(device)))
    return sink


class QuantizedInMemory:
    """What a model in memory became.

    `results` has what each matrix became, by the name of its row, on the CPU; `edits` those of transforms, which change
    what is not quantized too.
    """

    def __init__(
        self, blocks: Sequence[int | None], progress: Progress | None = None, store: KeptResults | None = None
    ) -> None:
        self.blocks, self._progress, self._store = blocks, progress or default_progress(), store
        self.results: dict[str, LayerResult] = {}
        self.edits: list[Edit] = []
        self._emitted: set[int | None] = set()
        for block in blocks:
            if store and (found := store.read(block)):
                self._take(block, *found)
        self._progress.stage("quantize", len(blocks), unit="blocks", work=len(blocks) - len(self._emitted))
        if self._emitted:
            self._progress.step(steps=len(self._emitted), work=0)

    def written(self, block: int | None) -> Callable[[MatrixRow], Tensor] | None:
        """The dense weights of a block that is done; see `Sink`."""
        if block not in self._emitted:
            return None
        return lambda row: dense_weight(row, self.results[row.name].quantized)

    def emit(self, block: int | None, results: Results, edits: Sequence[Edit]) -> None:
        """Keep the results of a block; see `Sink`."""
        if self._store:
            self._store.write(block, results, edits)
        self._take(block, results, edits)
        for name, (result, _) in results.items():
            self._progress.layer(name, result.loss)
        self._progress.step()

    def _take(self, block: int | None, results: Results, edits: Sequence[Edit]) -> None:
        self.edits += edits
        self.results |= {name: result for name, (result, _) in results.items()}
        self._emitted.add(block)
