"""Two models' answers to the same documents, compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, TypeVar

import numpy as np

from llmquant.errors import QuantizationError
from llmquant.eval.statistics import cluster_bootstrap, exponential
from llmquant.eval.tasks import paired
from llmquant.eval.tasks.harness import Answer
from llmquant.eval.tasks.load import Loaded
from llmquant.eval.tasks.result import Document, Flips, Group, Measure, Reply, Task

# Of each document the harness gives its log-likelihood, alone or with the number of words or bytes.
_PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity")
Row = TypeVar("Row", Task, Group)
Values = tuple[Any, ...]


def compare(
    loaded: Loaded, before: Mapping[str, Sequence[Answer]], after: Mapping[str, Sequence[Answer]], *, seed: int = 0
) -> tuple[tuple[Task, ...], tuple[Group, ...]]:
    """What each task and each group says of the two models; `seed` is of the bootstrap.

    Raises:
        QuantizationError: if to no document of a task both models give finite log-likelihoods.
    """
    tasks = {name: _task(name, task, before[name], after[name], seed) for name, task in loaded.tasks.items()}
    groups = (_group(each.name, [tasks[name] for name in each.members], each.by_size) for each in loaded.groups)
    return tuple(tasks.values()), tuple(groups)


def alone(rows: Sequence[Row]) -> tuple[Row, ...]:
    """What is left of tasks or groups, in which a model was compared with itself, of a model without a baseline."""
    found = []
    for row in rows:
        measures = tuple(replace(each, baseline=None, difference=None, flips=None) for each in row.measures)
        row = replace(row, measures=measures)
        if isinstance(row, Task):
            row = replace(row, documents=tuple(replace(each, baseline=None) for each in row.documents))
        found.append(row)
    return tuple(found)


def _task(name: str, task: Any, before: Sequence[Answer], after: Sequence[Answer], seed: int) -> Task:
    pairs = list(zip(before, after, strict=True))
    finite = [pair for pair in pairs if all(each.finite for each in pair)]
    if not finite:
        raise QuantizationError(f"the task {name}: to none of {len(pairs)} documents both models give finite numbers")
    names = tuple(finite[0][0].scores)
    found = {each: _measure(each, *_columns(finite, each), seed) for each in names}
    return Task(
        name=name,
        version=str(task.VERSION),
        output=task.get_config("output_type"),
        examples=task.get_config("num_fewshot"),
        nonfinite=len(pairs) - len(finite),
        measures=tuple(sorted(filter(None, found.values()), key=lambda each: each.kind != "accuracy")),
        not_compared=tuple(each for each in names if found[each] is None),
        documents=tuple(Document(one.id, one.hash, _reply(one), _reply(other)) for one, other in pairs),
    )


def _columns(pairs: Sequence[tuple[Answer, Answer]], name: str) -> tuple[Values, Values]:
    before, after = zip(*((one.scores[name], other.scores[name]) for one, other in pairs), strict=True)
    return before, after


def _reply(answer: Answer) -> Reply:
    responses = (each if isinstance(each, str) or math.isfinite(each) else None for each in answer.responses)
    plain = {
        name: float(value)
        for name, value in answer.scores.items()
        if name not in _PERPLEXITIES and isinstance(value, Real) and math.isfinite(value)
    }
    return Reply(tuple(responses), plain)


def _measure(name: str, before: Values, after: Values, seed: int) -> Measure | None:
    """None for measures that are no numbers of single documents, such as F1 over all."""
    if name in _PERPLEXITIES:
        return _perplexity(name, before, after, seed)
    if not all(isinstance(value, Real) for value in (*before, *after)):
        return None
    one, other = (np.asarray(values, dtype=np.float64) for values in (before, after))
    if set(one) | set(other) <= {0.0, 1.0}:
        return _accuracy(name, one == 1, other == 1)
    before_mean, after_mean, change = (
        cluster_bootstrap(each, np.ones(len(each)), seed=seed) for each in (one, other, other - one)
    )
    return Measure(name, "mean", before_mean, after_mean, change)


def _accuracy(name: str, before: np.ndarray, after: np.ndarray) -> Measure:
    lost, won, n = int((before & ~after).sum()), int((~before & after).sum()), len(before)
    one, other = (paired.share(int(each.sum()), n) for each in (before, after))
    flips = Flips(lost, won, paired.exact_p(lost, won))
    return Measure(name, "accuracy", one, other, paired.difference(lost, won, n), flips)


def _perplexity(name: str, before: Values, after: Values, seed: int) -> Measure:
    """exp of the mean loss: of a document, or of a word or byte."""
    pairs = [[value if isinstance(value, tuple) else (value, 1.0) for value in values] for values in (before, after)]
    (one, units), (other, _) = (np.asarray(each, dtype=np.float64).T for each in pairs)
    logs = [cluster_bootstrap(sums, units, seed=seed) for sums in (-one, -other, one - other)]
    return Measure(name, "perplexity", exponential(logs[0]), exponential(logs[1]), logs[2])


def _group(name: str, members: Sequence[Task], by_size: bool) -> Group:
    """The accuracies that all members have, averaged."""
    measures = []
    for of_first in members[0].measures:
        each = [one for task in members for one in task.measures if one.name == of_first.name and one.flips]
        if len(each) == len(members):
            measures.append(_average(each, [task.size if by_size else 1 for task in members]))
    size = sum(task.size for task in members)
    return Group(name, tuple(task.name for task in members), by_size, size, tuple(measures))


def _average(measures: Sequence[Measure], weights: Sequence[float]) -> Measure:
    flips = [each.flips for each in measures if each.flips]
    lost, won = sum(each.right_to_wrong for each in flips), sum(each.wrong_to_right for each in flips)
    one, other, change = (
        paired.mean([getattr(each, of) for each in measures], weights) for of in ("baseline", "quantized", "difference")
    )
    return Measure(measures[0].name, "accuracy", one, other, change, Flips(lost, won, paired.exact_p(lost, won)))
