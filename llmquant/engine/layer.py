"""Quantize one layer as its row of the plan says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from llmquant.algorithms.rounding.base import LayerResult
from llmquant.errors import PlanError, QuantizationError
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.recipe.plan import MatrixRow, Plan
from llmquant.recipe.schema import Recipe
from llmquant.statistics.base import LayerStatistics


def needs_calibration(recipe: Recipe, rows: Sequence[MatrixRow]) -> bool:
    """Whether quantizing these matrices of one block takes calibration data."""
    return any(row.needs for row in rows) or bool(rows and recipe.calibrated_blocks)


def check_statistics(plan: Plan) -> bool:
    """Whether a plan needs calibration data.

    Raises:
        PlanError: if a layer outside the decoder blocks does: no statistics are collected there.
    """
    needing = [row for row in plan.quantized if row.needs]
    for row in needing:
        if row.module.block is None:
            raise PlanError(
                f"{row.name} lies outside the decoder blocks, where no statistics are collected; "
                "give its rule `rounding: {method: rtn}`"
            )
    return needs_calibration(plan.recipe, plan.quantized)


def quantize_layer(
    row: MatrixRow, parameter: Tensor, statistics: LayerStatistics | None, dtype: torch.dtype
) -> LayerResult:
    """Quantize one matrix.

    `parameter` is what holds it, as `Matrix` says, and is not changed; `dtype` that of the checkpoint, in which the
    baseline computes.

    Raises:
        QuantizationError: naming the matrix, if the weight or the statistics cannot be quantized.
    """
    algorithm, options = row.rounding.algorithm, row.rounding.build_options()
    matrix, seen = row.matrix.of(parameter).to(dtype), statistics or LayerStatistics()
    try:
        return algorithm.quantize(matrix, seen, row.scheme, options, scale_dtype=row.scale_dtype)
    except QuantizationError as error:
        raise QuantizationError(f"{row.name}: {error}") from error


def dense_weight(row: MatrixRow, quantized: QuantizedTensor) -> Tensor:
    """The dequantized weight in the orientation of its parameter."""
    return row.matrix.held(quantized.dequantize(row.dense_dtype))


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
