"""What two models' answers to tasks come to, as it is written to JSON; docs/evaluation.md explains the keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmquant.eval.statistics import Estimate

Kind = Literal["accuracy", "perplexity", "mean"]


@dataclass(frozen=True, slots=True)
class Flips:
    """Documents whose answer changed between right and wrong; `p` is McNemar's, exact and two-sided."""

    right_to_wrong: int
    wrong_to_right: int
    p: float


@dataclass(frozen=True, slots=True)
class Measure:
    """One way to score a task.

    `difference` is paired, quantized less baseline; of perplexities it is that of their logarithms. Accuracies have
    `flips`. Without a baseline there is only `quantized`.
    """

    name: str
    kind: Kind
    baseline: Estimate | None
    quantized: Estimate
    difference: Estimate | None
    flips: Flips | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said: log-likelihoods of the choices in nats (null if not finite), or texts; and its scores."""

    responses: tuple[float | str | None, ...]
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its number in the task, a hash of its contents, and both models' replies."""

    id: int
    hash: str
    baseline: Reply | None
    quantized: Reply


@dataclass(frozen=True, slots=True)
class Task:
    """One task. `examples` stand in front of each question; `not_compared` are measures that are no plain numbers."""

    name: str
    version: str
    output: str
    examples: int
    nonfinite: int
    measures: tuple[Measure, ...]
    not_compared: tuple[str, ...]
    documents: tuple[Document, ...]

    @property
    def size(self) -> int:
        """Documents that count."""
        return len(self.documents) - self.nonfinite


@dataclass(frozen=True, slots=True)
class Group:
    """Tasks averaged: equally, or weighted by their sizes."""

    name: str
    members: tuple[str, ...]
    weighted: bool
    size: int
    measures: tuple[Measure, ...]
