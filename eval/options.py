"""What can be asked of an evaluation: one object, from the command line or `llmquant.evaluate` to every metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from llmquant.compat.loading import FLOATS
from llmquant.data.protocols import PROTOCOLS
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
        protocol: which text, and how it becomes windows: "tokens" (any text; by default the built-in one), or
            "wikitext2" or "c4" as papers on quantization do (see `llmquant.data.protocols`).
        text: a .txt, .jsonl or .json file, or "hub:NAME:CONFIG:SPLIT:COLUMN", in place of the protocol's own.
        length: tokens in a window; 512, or what the protocol says, or the model's context where that is smaller.
        bos: whether each window begins with the BOS token; None leaves that to tokenizer and protocol.
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

    protocol: str = "tokens"
    text: str | None = None
    length: int | None = None
    bos: bool | None = None
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
        if self.protocol not in PROTOCOLS:
            raise DataError(f"unknown protocol {self.protocol!r}; there are {', '.join(PROTOCOLS)}")
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
    def asked(self) -> list[str]:
        """The metrics that were asked for by name."""
        return [name for name, given in self.metrics.items() if given is not False]

    @property
    def wanted(self) -> tuple[Metric, ...]:
        """The metrics that go into the report, in their order."""
        return tuple(filter(self.wants, metrics()))
