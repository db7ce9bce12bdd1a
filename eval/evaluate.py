"""One evaluation from start to report, on two loaded models or one."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

from llmquant.errors import RecipeError
from llmquant.eval.metrics.base import Section
from llmquant.eval.pair import Pair
from llmquant.eval.result import BudgetVerdict, EvalReport, Model
from llmquant.eval.statistics import Estimate
from llmquant.limits import limits
from llmquant.machine import machine, versions
from llmquant.words import dtype_name


def evaluate(pair: Pair) -> EvalReport:
    """Let every metric measure, and give the report.

    Raises:
        DataError: if the models' vocabularies differ.
        QuantizationError: if no position is finite.
        CheckpointError: if a folder holds no complete safetensors checkpoint.
        RecipeError: for an unknown budget, or one that nothing measures.
    """
    pair.check()
    loss = pair.loss  # settled before anything else takes memory
    found = {metric.name: pair.section(metric) for metric in pair.wanted}
    sections = {name: section for name, section in found.items() if section is not None}
    parameters, before = pair.parameters, pair.subject.baseline_name
    return EvalReport(
        name=pair.subject.name,
        protocol=pair.windows.protocol,
        seed=pair.options.seed,
        versions=versions(),
        machine=machine(pair.baseline.device),
        baseline=None if before is None else Model(before, dtype_name(pair.baseline.dtype), parameters),
        quantized=Model(pair.subject.name, dtype_name(pair.quantized.dtype), parameters),
        loss_dtype=loss.dtype,
        loss_note=loss.note,
        kernels=pair.scored.kernels,
        accuracy=pair.scored.accuracy,
        sections=sections,
        budget=hold(pair.limits, sections),
        recipe_yaml=pair.subject.recipe_yaml,
        checkpoint=pair.subject.checkpoint,
    )


def hold(wanted: Mapping[str, float], sections: Mapping[str, Section]) -> tuple[BudgetVerdict, ...]:
    """Hold the sections of metrics against known, positive limits by name; a value at its limit passes.

    Where a section holds a plain number in place of an estimate, that number is exact.

    Raises:
        RecipeError: if a metric had nothing to measure.
    """
    return tuple(_verdict(name, limit, sections) for name, limit in wanted.items())


def _verdict(name: str, limit: float, sections: Mapping[str, Section]) -> BudgetVerdict:
    where = limits()[name]
    if where.metric not in sections:
        raise RecipeError(f"the budget {name} cannot be held: there was nothing that {where.metric!r} could measure")
    found = attrgetter(where.path)(sections[where.metric])
    if not isinstance(found, Estimate):
        return BudgetVerdict(name, limit, found, found <= limit, certain=True)
    certain = found.low is not None and found.high is not None and not found.low <= limit <= found.high
    return BudgetVerdict(name, limit, found.value, found.value <= limit, certain)
