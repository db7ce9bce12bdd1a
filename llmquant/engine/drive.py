"""The one way through a model: what lies outside its blocks first (embeddings, head), then block after block.

What needs no statistics is rounded tensor by tensor, behind transforms that need none either. For the others, one
forward of a block with its original weights gives the statistics of its layers; a second one, with the quantized
weights, gives the inputs of the next block. So each layer is calibrated on what it will really see. Tuning aims at what
the block puts out in the original model, which runs along for that: it makes up for errors of the blocks in front, too.
Only one block has weights at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor, nn

from llmquant.algorithms.rounding.base import LayerResult
from llmquant.algorithms.transforms.base import Block
from llmquant.algorithms.tuning.base import BlockCall, TunedLayer
from llmquant.device import rounding_device
from llmquant.engine.capture import BlockInputs, capture
from llmquant.engine.layer import dense_weight, needs_calibration, quantize_layer
from llmquant.engine.ranks import Ranks
from llmquant.engine.weights import BlockWeights, Work
from llmquant.errors import QuantizationError
from llmquant.memory import return_free_memory
from llmquant.models.edits import Edit
from llmquant.recipe.plan import MatrixRow
from llmquant.recipe.schema import TuningStep
from llmquant.statistics.base import LayerStatistics
from llmquant.statistics.collect import Collector

_CPU = torch.device("cpu")

Results = Mapping[str, tuple[LayerResult, float]]
"""What each matrix of a block became, by the names of plan rows, and the seconds that it took; on the CPU."""


class Sink(Protocol):
    """Where results go, and where those of an interrupted run are found again."""

    @property
    def blocks(self) -> Sequence[int | None]:
        """None for what lies outside the blocks, then indices; a checkpoint may hold some that the model has not."""
        ...

    def written(self, block: int | None) -> Callable[[MatrixRow], Tensor] | None:
        """Gives the dense weights of a block that is done already, as their parameters hold them; else None."""
        ...

    def emit(self, block: int | None, results: Results, edits: Sequence[Edit]) -> None:
        """Take the results of a block (None: of what lies outside), and the edits that came before them."""
        ...


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a drive computes.

    On `device`, in `dtype`, lie the block that is worked on, its inputs, statistics and rounding.
    """

    device: torch.device = _CPU
    dtype: torch.dtype = torch.float32
    ranks: Ranks = field(default_factory=Ranks)


@torch.no_grad()
def drive(work: Work, windows: Tensor | None, sink: Sink, setting: Setting = Setting()) -> None:
    """Quantize all that a plan names.

    `windows` (samples, length) are the token ids of the calibration; None where nothing needs them.

    Raises:
        QuantizationError: if a weight or a statistic cannot be quantized.
    """
    nn.Module.to(work.model, dtype=setting.dtype)
    by_block, waiting = _ByBlock(work, sink, setting), []
    for block in sink.blocks:
        if sink.written(block) is not None:
            continue
        rows = work.rows.get(block, [])
        if block is not None and needs_calibration(work.plan.recipe, rows):
            waiting.append(block)
        else:
            edits = by_block.transform(block) if block is not None and rows and work.plan.recipe.transforms else ()
            sink.emit(block, {row.name: _timed(row, work, work.read(row), None, setting) for row in rows}, edits)
    if waiting:
        assert windows is not None
        by_block.run(windows, waiting[-1])


def transform_notes(work: Work) -> Iterator[str]:
    """What transforms of the recipe say of blocks that they leave as they are."""
    for step in work.plan.recipe.transforms:
        reasons = [step.algorithm.why_not(_view(work, index)) for index in range(len(work.blocks))]
        found = [reason for reason in reasons if reason]
        if found:
            yield found[0] if len(found) == 1 else f"{found[0]} (and so {len(found) - 1} more blocks)"


def _view(work: Work, index: int) -> Block:
    return Block(f"{work.path}.{index}", work.blocks[index])


def _timed(
    row: MatrixRow, work: Work, parameter: Tensor, collector: Collector | None, setting: Setting
) -> tuple[LayerResult, float]:
    began = time.monotonic()
    statistics = collector.take(row.name) if collector and row.needs else None
    device = rounding_device(setting.device)
    result = quantize_layer(row, parameter.to(device), statistics and statistics.to(device), work.plan.inventory.dtype)
    return result.to(_CPU), time.monotonic() - began


def _dense(results: Results, row: MatrixRow) -> Tensor:
    return dense_weight(row, results[row.name][0].quantized)


class _ByBlock:
    """The way through the blocks, each with its weights."""

    def __init__(self, work: Work, sink: Sink, setting: Setting) -> None:
        self._work, self._sink, self._setting = work, sink, setting

    @cached_property
    def _weights(self) -> BlockWeights:
        return BlockWeights(self._work, self._setting.device)

    def transform(self, index: int) -> list[Edit]:
        """Rewrite a block by transforms that look at its weights alone."""
        self._weights.load(index)
        edits = self._transform(index, None)
        self._weights.release(index)
        return_free_memory()
        return edits

    def run(self, windows: Tensor, last: int) -> None:
        """Go as far as block `last`, on calibration data."""
        work, ranks = self._work, self._setting.ranks
        if ranks.size > 1 and work.plan.recipe.tuning:
            raise QuantizationError(
                f"{work.plan.recipe.tuning[0].method} sees the windows of one process, so {ranks.size} would get "
                "weights of their own; tune in one process, or drop `tuning:` from the recipe"
            )
        self._weights.load_outside()
        self._weights.load(0)
        windows = windows[ranks.rank :: ranks.size].to(self._setting.device)
        with ExitStack() as stack:
            originals = stack.enter_context(self._begin(windows)) if work.plan.recipe.tuning else None
            self._put([row for row in work.rows.get(None, []) if row.matrix.table], self._sink.written(None))
            inputs = stack.enter_context(self._begin(windows))
            self._weights.release_outside(inputs.between)
            for index in range(last + 1):
                if index:
                    self._weights.load(index)
                block, rows, dense = work.blocks[index], work.rows.get(index, []), self._sink.written(index)
                targets = list(originals.advancing(index, block)) if originals else []
                if dense is None:
                    self._quantize(index, rows, inputs, targets)
                else:
                    self._put(rows, dense)
                block.to(self._setting.dtype)
                if index < last:
                    inputs.advance(index, block)
                self._weights.release(index)
                return_free_memory()

    def _begin(self, windows: Tensor) -> BlockInputs:
        return capture(self._work.model.base_model, self._work.blocks, windows)

    def _quantize(self, index: int, rows: Sequence[MatrixRow], inputs: BlockInputs, targets: Sequence[Tensor]) -> None:
        """Quantize one block. `targets` are what it puts out in the original model, for tuning."""
        work, block = self._work, self._work.blocks[index]
        edits = self._transform(index, inputs) if rows else []
        collector = self._collect(index, {row.matrix.module: row.needs for row in rows if row.needs}, inputs)
        results, before = {}, {}
        for row in rows:
            parameter = work.model.get_parameter(row.matrix.key)
            if work.plan.recipe.tuning:
                before[row.name] = row.matrix.of(parameter)
            results[row.name] = _timed(row, work, parameter, collector, self._setting)
            self._put([row], partial(_dense, results))
        for step in work.plan.recipe.tuning if rows else ():
            block.to(self._setting.dtype)
            results = self._tune(step, index, before, rows, results, inputs.calls(index), targets)
            self._put(rows, partial(_dense, results))
        self._sink.emit(index, results, edits)

    def _transform(self, index: int, inputs: BlockInputs | None) -> list[Edit]:
        """Rewrite a block, each transform on the statistics of what those before it have left."""
        edits, view = [], _view(self._work, index)
        for step in self._work.plan.recipe.transforms:
            reads = step.algorithm.reads(view)
            statistics = dict.fromkeys(reads, LayerStatistics())
            needs: frozenset[str] = step.algorithm.NEEDS
            if needs:
                assert inputs is not None  # see needs_calibration
                collector = self._collect(index, dict.fromkeys(reads, needs), inputs)
                statistics = {name: collector.take(name) for name in reads}
            found = step.algorithm.fit(view, statistics, step.build_options())
            self._work.source.extend(found)
            if found:
                self._weights.release(index)
                self._weights.load(index)
            edits += found
        return edits

    def _tune(
        self,
        step: TuningStep,
        index: int,
        before: Mapping[str, Tensor],
        rows: Sequence[MatrixRow],
        results: Results,
        calls: Sequence[BlockCall],
        targets: Sequence[Tensor],
    ) -> Results:
        """The results with the weights that tuning made of them; what a rounding lost stays as it was measured.

        `before` has the weights (out_features, in_features) that were rounded.
        """
        began, device = time.monotonic(), self._setting.device
        inner = {row.name: row.matrix.module.removeprefix(f"{self._work.path}.{index}.") for row in rows}
        layers = {
            inner[row.name]: TunedLayer(
                results[row.name][0].quantized.to(device), row.scheme, row.matrix.turned, before[row.name]
            )
            for row in rows
        }
        tuned = step.algorithm.tune(self._work.blocks[index], calls, targets, layers, step.build_options())
        seconds = (time.monotonic() - began) / len(rows)
        return {
            name: (replace(result, quantized=tuned.layers[inner[name]].to(_CPU)), spent + seconds)
            for name, (result, spent) in results.items()
        }

    def _collect(self, index: int, needs: Mapping[str, Collection[str]], inputs: BlockInputs) -> Collector:
        """Run a block and count what its layers see."""
        block = self._work.blocks[index]
        collector = Collector({name: self._work.model.get_submodule(name) for name in needs}, needs)
        if needs:
            with collector.attached(block):
                inputs.run(index, block)
            self._setting.ranks.merge(collector)
        return collector

    def _put(self, rows: Sequence[MatrixRow], dense: Callable[[MatrixRow], Tensor] | None) -> None:
        assert dense is not None  # what lies outside is emitted before any block
        for row in rows:
            weight, matrix = dense(row).to(self._setting.device), row.matrix
            if matrix.index is not None:
                self._work.model.get_parameter(matrix.key)[matrix.index] = weight.to(self._setting.dtype)
                continue
            # In the dtype of the scales until the whole block is widened: half the memory while layers that follow are
            # quantized.
            module, _, leaf = matrix.key.rpartition(".")
            setattr(self._work.model.get_submodule(module), leaf, nn.Parameter(weight, requires_grad=False))
