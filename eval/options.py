"""What can be asked of an evaluation: one object, from the command line or `llmquant.evaluate` to every metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from llmquant.compat.loading import FLOATS
from llmquant.errors import DataError
from llmquant.eval.metrics import find, metrics
from llmquant.eval.metrics.base import Metric
from llmquant.limits import check_limits
from llmquant.nn.accuracy import Accuracy
from llmquant.words import dtype_name, shown

DTYPES = ("auto", "checkpoint", *map(dtype_name, FLOATS))
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """How two models are compared.

    Attributes:
        text: a .txt, .jsonl or .json file, "hub:NAME", or the built-in text (the evaluation split).
        length: tokens in a window; 512, or the model's context where that is smaller.
        stride: text tokens from one window to the next; without it windows do not overlap.
        max_windows: use only the first windows.
        batch_size: windows at once; chosen from the vocabulary if None.
        dtype: "auto" measures losses in float32 over the stored weights if that fits into memory, and speed in the
            dtype of the checkpoint, against the baseline in that dtype and in the fastest one. "checkpoint" measures
            losses as the models run by default. A name such as "float32" loads both models in that dtype for
            everything, which rounds scales anew where it is narrower.
        device: where models, windows and logits live: "auto" takes cuda, xpu or mps where there is one, else the CPU.
        accuracy: of packed layers' kernels while losses are measured: "exact", or "fast" to see what that mode costs.
            The speed is that of the model's own default.
        kernel: "reference" runs packed layers by plain torch, for comparison; slow.
        seed: of the bootstrap.
        budget: limits by name (see `llmquant.limits`); over those of the recipe, None lifts one.
        metrics: by name: False leaves a metric out, True or a mapping of its options measures it.
        trust_remote_code: run code that comes with either checkpoint, if its architecture needs it.

    Raises:
        DataError: for a dtype or an option of a metric that there is not.
        RecipeError: for an unknown metric or budget, or a limit that is no positive number.
    """

    text: str = "builtin:python"
    length: int | None = None
    stride: int | None = None
    max_windows: int | None = None
    batch_size: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    accuracy: Accuracy = "exact"
    kernel: Literal["reference"] | None = None
    seed: int = 0
    budget: Mapping[str, float | None] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any] | bool] = field(default_factory=dict)
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise DataError(f"unknown dtype {self.dtype!r}; give one of {', '.join(DTYPES)}")
        check_limits(self.budget)
        for name in self.metrics:
            self.of(find(name))

    def wants(self, metric: Metric) -> bool:
        """Whether a metric goes into the report."""
        return self.metrics.get(metric.name, metric.by_default) is not False

    def of(self, metric: Metric) -> Any:
        """The options of one metric, of the types that they are declared with; they check their ranges."""
        given = self.metrics.get(metric.name)
        given, hints = given if isinstance(given, Mapping) else {}, get_type_hints(metric.options)
        for key in sorted(given.keys() & hints.keys()):
            try:
                TypeAdapter(hints[key], config=_STRICT).validate_python(given[key])
            except ValidationError as error:
                said = error.errors()[0]["msg"].replace("Input should be", "should be")
                raise DataError(f"metric {metric.name!r}: {key} {said}; got {shown(given[key])}") from error
        try:
            return metric.options(**given)
        except TypeError as error:
            known = ", ".join(each.name for each in fields(metric.options)) or "none"  # pyright: ignore[reportArgumentType]
            raise DataError(f"metric {metric.name!r}: {error}; its options are: {known}") from error

    @property
    def wanted(self) -> tuple[Metric, ...]:
        """The metrics that go into the report, in their order."""
        return tuple(filter(self.wants, metrics()))
