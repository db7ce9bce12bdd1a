"""One evaluation from start to report, on two loaded models."""

from __future__ import annotations

from llmquant.eval.budget import hold
from llmquant.eval.pair import Pair
from llmquant.eval.result import EvalReport, Model
from llmquant.machine import machine, versions
from llmquant.nn.counting import weight_count
from llmquant.words import dtype_name


def evaluate(pair: Pair) -> EvalReport:
    """Let every metric measure, and give the report.

    Args:
        pair: the models, the text, and what was asked; see `Pair`.

    Raises:
        DataError: if the models' vocabularies differ, or a window is too short for the speed test.
        QuantizationError: if no position is finite.
        CheckpointError: if a folder holds no complete safetensors checkpoint.
        RecipeError: for an unknown budget, or one that nothing measures.
    """
    pair.check()
    loss = pair.loss  # settled before anything else takes memory
    found = {metric.name: pair.section(metric) for metric in pair.options.wanted}
    sections = {name: section for name, section in found.items() if section is not None}
    names, parameters = (pair.subject.baseline_name, pair.subject.name), weight_count(pair.baseline)
    before, after = (
        Model(name, dtype_name(model.dtype), parameters) for name, model in zip(names, pair.models, strict=True)
    )
    return EvalReport(
        name=pair.subject.name,
        protocol=pair.windows.protocol,
        seed=pair.options.seed,
        versions=versions(),
        machine=machine(pair.baseline.device),
        baseline=before,
        quantized=after,
        loss_dtype=loss.dtype,
        loss_note=loss.note,
        kernels=pair.scored.kernels,
        accuracy=pair.scored.accuracy,
        sections=sections,
        budget=hold(pair.limits, sections),
        recipe_yaml=pair.subject.recipe_yaml,
    )
