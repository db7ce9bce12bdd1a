"""Quantize one layer as its row of the plan says."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from llmquant.algorithms.rounding.base import LayerResult
from llmquant.errors import PlanError, QuantizationError
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.recipe.plan import Plan, PlanRow
from llmquant.statistics.base import LayerStatistics


def needs_statistics(row: PlanRow) -> bool:
    """Whether the rounding of this row looks at calibration data."""
    assert row.rounding is not None
    return bool(row.rounding.algorithm.NEEDS)


def check_statistics(plan: Plan) -> bool:
    """Whether a plan needs calibration data.

    Raises:
        PlanError: if a layer outside the decoder blocks does: no statistics are collected there.
    """
    needing = [row for row in plan.quantized if needs_statistics(row)]
    for row in needing:
        if row.module.block is None:
            raise PlanError(
                f"{row.module.name} lies outside the decoder blocks, where no statistics are collected; "
                "give its rule `rounding: {method: rtn}`"
            )
    return bool(needing)


def quantize_layer(
    row: PlanRow, weight: Tensor, statistics: LayerStatistics | None, scale_dtype: torch.dtype
) -> LayerResult:
    """Quantize the weight of one module.

    Args:
        row: what the module becomes.
        weight: as the module holds it: (out_features, in_features), or turned for a Conv1D. It is not changed.
        statistics: of the layer's inputs, where the rounding needs them.
        scale_dtype: the dtype of the checkpoint, in which scales are stored.

    Raises:
        QuantizationError: naming the module, if the weight or the statistics cannot be quantized.
    """
    assert row.rounding is not None
    algorithm, options = row.rounding.algorithm, row.rounding.build_options()
    matrix = weight.T if row.module.kind == "conv1d" else weight
    matrix = matrix.to(scale_dtype)  # what the baseline would compute with
    try:
        return algorithm.quantize(matrix, statistics or LayerStatistics(), row.scheme, options, scale_dtype=scale_dtype)
    except QuantizationError as error:
        raise QuantizationError(f"{row.module.name}: {error}") from error


def dense_weight(row: PlanRow, quantized: QuantizedTensor) -> Tensor:
    """The dequantized weight in the orientation of the module."""
    dense = quantized.dequantize()
    return dense.T if row.module.kind == "conv1d" else dense


def digest(quantized: QuantizedTensor) -> str:
    """Hash of codes, scales (as float32) and zeros: equal digests mean equal weights."""
    parts = [quantized.codes, quantized.scales.float()]
    if quantized.zeros is not None:
        parts.append(quantized.zeros)
    sha = hashlib.sha256()
    for part in parts:
        sha.update(str(tuple(part.shape)).encode())
        sha.update(part.cpu().contiguous().numpy().data)
    return sha.hexdigest()
