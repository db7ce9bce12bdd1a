"""A candidate and its baseline, with all that metrics may ask of them. What several need is measured once.

Candidates that are compared with one baseline are one `Pair` each, and share what `Pair.once` keeps: the baseline runs
once over the text, and what it gives is there for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from llmquant.data.windows import Windows
from llmquant.errors import RecipeError
from llmquant.eval.metrics import find
from llmquant.eval.metrics.base import Metric, Section
from llmquant.eval.options import EvalOptions
from llmquant.eval.precision import LossDtype, choose, in_accuracy, in_float32
from llmquant.eval.scoring import TokenScores, score_tokens
from llmquant.eval.store import Store
from llmquant.limits import check_limits, limits
from llmquant.models.skeleton import original_weight_count
from llmquant.nn.accuracy import Accuracy, accuracy_of, kernels_used
from llmquant.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

S = TypeVar("S", bound=Section)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Where the pair comes from."""

    name: str  # of the quantized model, such as its recipe's
    baseline_name: str | None  # such as its hub id; None of a model that is measured alone
    folder: Path | None = None  # the quantized checkpoint, for its size
    baseline_folder: Path | None = None
    made: Mapping[str, Any] | None = None  # what the run wrote into llmquant.json: plan, losses; None of other tools
    baseline_made: Mapping[str, Any] | None = None  # the same of a baseline that is quantized itself
    limits: Mapping[str, float | None] = field(default_factory=dict)  # the recipe's budget (see `llmquant.limits`)
    recipe_yaml: str | None = None
    checkpoint: str | None = None  # a hash of what llmquant.json says of its tensors


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known before a model is loaded; the tokenizer is the baseline's."""

    subject: Subject
    windows: Windows
    tokenizer: Any
    options: EvalOptions = field(default_factory=EvalOptions)
    store: Store | None = None  # of what is finished, so that a killed evaluation goes on

    @property
    def alone(self) -> bool:
        """Whether there is no baseline; `Pair.baseline` is the model itself then."""
        return self.subject.baseline_name is None

    @property
    def wanted(self) -> tuple[Metric, ...]:
        """The metrics that go into the report; those that compare need a baseline."""
        return tuple(metric for metric in self.options.wanted if metric.alone or not self.alone)

    @property
    def limits(self) -> dict[str, float]:
        """The budget: the recipe's, which is for a comparison, with what was asked over it."""
        wanted = {**({} if self.alone else self.subject.limits), **self.options.budget}
        return {name: limit for name, limit in wanted.items() if limit is not None}

    def check(self) -> None:
        """Refuse what could not be measured.

        Raises:
            LlmquantError: of the metric that refuses; a RecipeError for a budget that nothing would measure.
        """
        check_limits(self.limits)
        if self.alone and (compares := [name for name in self.options.asked if not find(name).alone]):
            raise RecipeError(f"the metric {compares[0]!r} compares two models; give a baseline, or leave it out")
        for name in self.limits:
            metric = find(limits()[name].metric)
            if self.alone and not metric.alone:
                raise RecipeError(f"the budget {name} is on a comparison; give a baseline, or lift the budget")
            if metric not in self.wanted:
                raise RecipeError(
                    f"the budget {name} needs the metric {metric.name!r}, which is not measured; ask for it, or lift "
                    "the budget"
                )
        for metric in self.wanted:
            metric.check(self, self.options.of(metric))


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of all tokens, and which kernels the quantized model's packed layers ran on meanwhile."""

    tokens: TokenScores
    kernels: dict[str, int]
    accuracy: Accuracy | None


@dataclass(frozen=True, kw_only=True)
class Pair(Facts):
    """Two loaded models on the same device; `pairs` makes those of several candidates.

    `candidates` are the loaded models of the whole comparison, and `place` is the number of this pair's among them.
    """

    baseline: PreTrainedModel
    quantized: PreTrainedModel
    progress: Progress = field(default_factory=Progress)
    candidates: tuple[PreTrainedModel, ...] = ()  # the quantized model alone
    place: int = 0
    stores: tuple[Store | None, ...] = ()  # of all candidates
    _shared: dict[str, Any] = field(default_factory=dict, repr=False)  # by all pairs of the comparison
    _sections: dict[str, Section | None] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", self.candidates or (self.quantized,))
        object.__setattr__(self, "stores", self.stores or (self.store,))

    @property
    def models(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        """Baseline and quantized."""
        return self.baseline, self.quantized

    @property
    def _all(self) -> tuple[PreTrainedModel, ...]:
        return tuple(dict.fromkeys((self.baseline, *self.candidates)))

    def once(self, key: str, make: Callable[[], T]) -> T:
        """What `make` gives, made when a pair of the comparison first asks for it, and the same for all of them.

        Keys begin with the name of the metric that uses them.
        """
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def get(self, kind: type[S]) -> S | None:
        """What another metric measures, such as `pair.get(NoiseFloor)`; None if the report leaves it out."""
        metric = find(kind.metric())
        return cast("S | None", self.section(metric)) if metric in self.wanted else None

    def section(self, metric: Metric) -> Section | None:
        """The section of a metric, measured when it is first asked for."""
        if metric.name not in self._sections:
            found = self.store.section(metric, self.loss.dtype) if self.store else None
            if found is None:
                found = metric.measure(self, self.options.of(metric))
                if self.store and found is not None:
                    self.store.keep_section(metric, self.loss.dtype, found)
            self._sections[metric.name] = found
        return self._sections[metric.name]

    @contextmanager
    def as_stored(self, *models: PreTrainedModel) -> Iterator[None]:
        """The models (by default this pair's) in their own dtypes, packed layers in the accuracy that was asked for."""
        with ExitStack() as stack:
            for model in models or self.models:
                stack.enter_context(in_accuracy(model, self.options.accuracy))
            yield

    @contextmanager
    def as_scored(self, *models: PreTrainedModel) -> Iterator[None]:
        """The models as losses are measured: in float32 over the stored weights where that fits (see `loss`)."""
        models = models or self.models
        with self.as_stored(*models), ExitStack() as stack:
            for model in models if self.loss.wide else ():
                stack.enter_context(in_float32(model, keep_kernels=self.options.accuracy == "fast"))
            yield

    @property
    def parameters(self) -> int:
        """Weights that the baseline stands for."""
        return self.once("parameters", lambda: original_weight_count(self.baseline))

    @property
    def loss(self) -> LossDtype:
        """In which dtype losses are measured: one for the whole comparison."""
        wanted = "auto" if self.options.dtype == "auto" else "checkpoint"
        kernels = self.options.accuracy == "fast"
        return self.once("loss", lambda: choose(self._all, wanted, kernels=kernels))

    @property
    def scored(self) -> Scored:
        """Every scored token of the text by both models; all candidates run when the first of them asks.

        Raises:
            QuantizationError: if no position is finite.
        """
        found = self.once("scored", self._score)[self.place]
        found.tokens.check(self.subject.name)
        return found

    def _score(self) -> list[Scored]:
        with self.as_scored(*self._all):
            scores = score_tokens(
                self.baseline, self.candidates, self.windows, self.progress, batch_size=self.options.batch_size,
                kept=self._kept, keep=self._keep,
            )  # fmt: skip
            return [
                Scored(tokens, kernels_used(model), accuracy_of(model))
                for tokens, model in zip(scores, self.candidates, strict=True)
            ]

    def _kept(self, place: int, batch: str) -> TokenScores | None:
        store = self.stores[place]
        return store.scores(f"{self.loss.dtype} {batch}") if store else None

    def _keep(self, place: int, batch: str, scores: TokenScores) -> None:
        if store := self.stores[place]:
            store.keep_scores(f"{self.loss.dtype} {batch}", scores)


def pairs(
    facts: Sequence[Facts],
    baseline: PreTrainedModel,
    candidates: Sequence[PreTrainedModel],
    progress: Progress | None = None,
) -> list[Pair]:
    """The candidates of one comparison, each with the facts on it; all on the same windows, with the same options."""
    shared: dict[str, Any] = {}
    return [
        Pair(
            **vars(known), baseline=baseline, quantized=model, progress=progress or Progress(),
            candidates=tuple(candidates), place=place, stores=tuple(each.store for each in facts), _shared=shared,
        )
        for place, (known, model) in enumerate(zip(facts, candidates, strict=True))
    ]  # fmt: skip
