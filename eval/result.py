"""`EvalReport`: everything one evaluation measured, as it is written to JSON.

The keys of the JSON file are the field names below; docs/evaluation.md explains each. `SCHEMA_VERSION` grows when a key
changes its meaning or goes away; a reader refuses keys and versions that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from llmquant.data.windows import Protocol
from llmquant.errors import DataError
from llmquant.eval.statistics import Estimate, Spread
from llmquant.eval.verdict import Verdict

SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True)
class KlSection:
    """KL(baseline||quantized) per token, in nats; the mean has an interval as in `Estimate`."""

    mean: float
    low: float | None
    high: float | None
    standard_error: float | None
    median: float
    p90: float
    p99: float
    p999: float
    max: float
    note: str | None = None


@dataclass(frozen=True, slots=True)
class ProbabilityShift:
    """Change of the probability of the text's token, quantized less baseline."""

    mean: float
    rms: float


@dataclass(frozen=True, slots=True)
class Flips:
    """Tokens whose greedy prediction changed between right and wrong."""

    right_to_wrong: int
    wrong_to_right: int


@dataclass(frozen=True, slots=True)
class ConfidenceBucket:
    """Mean KL of the tokens where the baseline's highest probability lies in [low, high)."""

    low: float
    high: float
    tokens: int
    kl: float | None


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts in equal bins of log10(value) from `low` to `high`."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ComparisonSection:
    """Quantized model against baseline on the same tokens."""

    tokens: int
    nonfinite: int
    kl: KlSection
    top1_agreement: Estimate
    log_perplexity_difference: Estimate
    perplexity_ratio: Estimate
    probability_shift: ProbabilityShift
    flips: Flips
    confidence_buckets: tuple[ConfidenceBucket, ...]
    kl_histogram: Histogram
    noise_floor: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in memory: parameters and buffers, and the rise of the peak while one window is scored."""

    parameter_bytes: int
    working_bytes: int | None
    note: str


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second, measured in turn with the other model."""

    prefill: Spread
    decode: Spread


@dataclass(frozen=True, slots=True)
class DenseSpeed:
    """The baseline in one dtype: tokens per second, and the quantized model over it, round by round."""

    dtype: str
    prefill: Spread
    decode: Spread
    prefill_speedup: Spread
    decode_speedup: Spread


@dataclass(frozen=True, slots=True)
class SpeedProtocol:
    """How speed was measured, and quantized over baseline round by round (above 1 is faster).

    `prefill_speedup` and `decode_speedup` are over the baseline in its own dtype, `dense` over it in every dtype that
    was timed, its own first; `fastest_prefill` and `fastest_decode` name the fastest of them. `kernels` and `accuracy`
    are those of the quantized model while it was timed, which is how it runs by default.
    """

    batch_size: int
    prompt_tokens: int
    decode_tokens: int
    threads: int
    device: str
    prefill_speedup: Spread
    decode_speedup: Spread
    dense: tuple[DenseSpeed, ...]
    fastest_prefill: str
    fastest_decode: str
    kernels: dict[str, int] = field(default_factory=dict)
    accuracy: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class ModelSection:
    """One of the two models."""

    name: str
    dtype: str
    parameters: int
    checkpoint_bytes: int | None
    bits_per_weight: float | None
    perplexity: Estimate
    memory: Memory | None = None
    speed: Speed | None = None


@dataclass(frozen=True, slots=True)
class BudgetVerdict:
    """One limit of the recipe; `certain` is False where the limit lies inside the measurement's interval."""

    name: str
    limit: float
    measured: float
    passed: bool
    certain: bool


@dataclass(frozen=True, slots=True)
class AnatomyPart:
    """Bytes of one kind of module stored in one scheme."""

    kind: str
    scheme: str
    bytes: int


@dataclass(frozen=True, slots=True)
class WorstToken:
    """A token with a high KL, in its context."""

    window: int
    position: int
    kl: float
    context: str
    token: str
    probability_baseline: float
    probability_quantized: float
    top_baseline: str
    top_quantized: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """One quantized model against its baseline.

    `loss_dtype`, `loss_note`, `kernels` and `accuracy` say how the models computed while they were scored.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    schema_version: int = SCHEMA_VERSION
    name: str
    protocol: Protocol
    seed: int
    versions: dict[str, str]
    machine: dict[str, str | int]
    baseline: ModelSection
    quantized: ModelSection
    comparison: ComparisonSection
    loss_dtype: str
    loss_note: str
    speed_protocol: SpeedProtocol | None = None
    kernels: dict[str, int] = field(default_factory=dict)
    accuracy: str | None = None
    budget: tuple[BudgetVerdict, ...] = ()
    anatomy_baseline: tuple[AnatomyPart, ...] = ()
    anatomy: tuple[AnatomyPart, ...] = ()
    layer_losses: dict[str, float] = field(default_factory=dict)
    worst_tokens: tuple[WorstToken, ...] = ()
    recipe_yaml: str | None = None

    @property
    def size_ratio(self) -> float | None:
        """How many times smaller the quantized checkpoint is."""
        before, after = self.baseline.checkpoint_bytes, self.quantized.checkpoint_bytes
        return before / after if before and after else None

    @property
    def budget_passed(self) -> bool:
        """Whether every limit is kept (also where there is none)."""
        return all(each.passed for each in self.budget)

    def to_json(self) -> str:
        """The report as JSON text, keys as in docs/evaluation.md."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> EvalReport:
        """Read what `to_json` wrote.

        Raises:
            DataError: if the text is no report, or one of another schema version.
        """
        try:
            data: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"the report is not JSON: {error}") from None
        version = data.get("schema_version") if isinstance(data, Mapping) else None
        if version != SCHEMA_VERSION:
            raise DataError(
                f"the report has schema version {version!r}, this llmquant reads {SCHEMA_VERSION}; evaluate again"
            )
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(f"the report is malformed at {place!r}: {first['msg']}") from None

    @classmethod
    def load(cls, path: str | Path) -> EvalReport:
        """Read a report file; errors as in `from_json`."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))
