"""Block by block: collect statistics in front of the quantized prefix, quantize, and go on with the quantized block.

One forward of a block with its original weights gives the statistics of its layers; a second one, with the quantized
weights, gives the inputs of the next block. So each layer is calibrated on what it will really see. Only one block has
weights at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from llmquant.algorithms.rounding.base import LayerResult
from llmquant.engine.capture import BlockInputs, capture
from llmquant.engine.layer import dense_weight, quantize_layer
from llmquant.engine.memory import return_free_memory
from llmquant.recipe.plan import MatrixRow
from llmquant.statistics.collect import Collector


class BlockWeights(Protocol):
    """Where the weights of a block come from while it is worked on."""

    def load(self, index: int) -> None:
        """Give block `index` its original weights."""
        ...

    def release(self, index: int) -> None:
        """Free them."""
        ...


class BlockSink(Protocol):
    """Where results go, and where those of an interrupted run are found again."""

    def finished(self, index: int) -> Mapping[str, Tensor] | None:
        """Dense quantized weights by module name of a block that is done already, else None."""
        ...

    def emit(self, index: int, results: Mapping[str, tuple[LayerResult, float]]) -> None:
        """Take the result of each layer of block `index` and the seconds it took."""
        ...


@torch.no_grad()
def quantize_blocks(
    model: nn.Module,
    base_model: nn.Module,
    blocks: Sequence[nn.Module],
    rows: Sequence[Sequence[MatrixRow]],
    windows: Tensor,
    *,
    scale_dtype: torch.dtype,
    weights: BlockWeights,
    sink: BlockSink,
    captured: Callable[[Collection[nn.Module]], None] = lambda _: None,
) -> None:
    """Quantize all decoder blocks with calibration data.

    Args:
        model: the causal LM; `rows` name its modules.
        base_model: the model below its head; everything in it but the blocks must have weights.
        blocks: the decoder blocks, in order.
        rows: for each block, the layers that are quantized; blocks behind the last that has statistics may be missing.
        windows: (samples, length) token ids.
        scale_dtype: dtype of the checkpoint.
        weights: gives and takes the weights of one block.
        sink: takes the results.
        captured: called when the model has come to its first block, with the modules outside the blocks that it will
            use again.
    """
    weights.load(0)
    with capture(base_model, blocks, windows) as inputs:
        captured(inputs.between)
        for index, block in enumerate(blocks[: len(rows)]):
            if index:
                weights.load(index)
            finished = sink.finished(index)
            if finished is None:
                _quantize_block(model, block, index, rows[index], inputs, scale_dtype, sink)
            else:
                for name, weight in finished.items():
                    replace_weight(model.get_submodule(name), weight)
            block.float()
            if index + 1 < len(rows):
                inputs.advance(index, block)
            weights.release(index)
            return_free_memory()


def _quantize_block(
    model: nn.Module,
    block: nn.Module,
    index: int,
    rows: Sequence[MatrixRow],
    inputs: BlockInputs,
    scale_dtype: torch.dtype,
    sink: BlockSink,
) -> None:
    calibrated = {row.name: model.get_submodule(row.name) for row in rows if row.needs}
    collector = Collector(calibrated, {row.name: row.needs for row in rows})
    if calibrated:
        with collector.attached(block):
            inputs.run(index, block)
    results = {}
    for row in rows:
        began = time.monotonic()
        module = model.get_submodule(row.name)
        statistics = collector.take(row.name) if row.name in calibrated else None
        assert isinstance(module.weight, Tensor)
        result = quantize_layer(row, module.weight, statistics, scale_dtype)
        replace_weight(module, dense_weight(row, result.quantized))
        results[row.name] = (result, time.monotonic() - began)
    sink.emit(index, results)


def replace_weight(module: nn.Module, weight: Tensor) -> None:
    """Give a module its dequantized weight."""
    # In the dtype of the scales, which holds it exactly, until the whole block is widened: half the memory while the
    # layers that follow are quantized.
    module.weight = nn.Parameter(weight, requires_grad=False)
