"""`EvalReport`: everything one evaluation measured, as it is written to JSON.

The keys of the JSON file are the field names below and in the sections of `llmquant.eval.metrics`; docs/evaluation.md
explains each. `SCHEMA_VERSION` grows when a key changes its meaning or goes away; a reader refuses keys and versions
that it does not know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from llmquant.data.windows import Protocol
from llmquant.errors import DataError, RecipeError
from llmquant.eval.metrics import find, metrics
from llmquant.eval.metrics.base import Column, Metric, Section
from llmquant.files import MAX_DEPTH, read_plain
from llmquant.notebook import html_table
from llmquant.words import listed

SCHEMA_VERSION = 4
_LARGEST = 1e100  # of numbers in a report: the cube is still one
_DIGITS = 100
S = TypeVar("S", bound=Section)


@dataclass(frozen=True, slots=True)
class Model:
    """One of the models; `parameters` are the weights of the baseline, which the quantized one stands for."""

    name: str
    dtype: str
    parameters: int


@dataclass(frozen=True, slots=True)
class BudgetVerdict:
    """One limit of the budget; `certain` is False where the limit lies inside the measurement's interval."""

    name: str
    limit: float
    measured: float
    passed: bool
    certain: bool


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """One quantized model against its baseline, or a model alone (`baseline` is None).

    `loss_dtype`, `loss_note`, `kernels` and `accuracy` say how the models computed while they were scored; `sections`
    holds what each metric measured, by its name. `checkpoint` hashes the digests of all tensors.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    schema_version: int = SCHEMA_VERSION
    name: str
    protocol: Protocol
    seed: int
    versions: dict[str, str]
    machine: dict[str, str | int]
    baseline: Model | None
    quantized: Model
    loss_dtype: str
    loss_note: str
    kernels: dict[str, int] = field(default_factory=dict)
    accuracy: str | None = None
    sections: dict[str, Any]
    budget: tuple[BudgetVerdict, ...] = ()
    recipe_yaml: str | None = None
    checkpoint: str | None = None

    @property
    def against(self) -> str | None:
        """Name of the baseline; None without one."""
        return self.baseline and self.baseline.name

    @property
    def budget_passed(self) -> bool:
        """Whether every limit is kept (also where there is none)."""
        return all(each.passed for each in self.budget)

    @property
    def over_budget(self) -> str:
        """The limits that are not kept, for a sentence, and whether that is within error."""
        failed = (each for each in self.budget if not each.passed)
        return ", ".join(each.name if each.certain else f"{each.name}, within error" for each in failed)

    def get(self, kind: type[S]) -> S | None:
        """What a metric measured, such as `report.get(Divergence)`; None if it was not measured."""
        return cast("S | None", self.sections.get(kind.metric()))

    def __getitem__(self, kind: type[S]) -> S:
        """As `get`, but a KeyError if it was not measured."""
        return self.sections[kind.metric()]

    def columns(self) -> list[Column]:
        """Columns of the table, those with words last."""
        found = [column for metric, section in self._measured() for column in metric.columns(section, self)]
        return sorted(found, key=lambda column: column.words)

    def sentence(self) -> str:
        """Size, loss, speed and budget: the words of every metric."""
        parts = [word for metric, section in self._measured() for word in metric.words(section, self)]
        if self.budget:
            parts.append("budget passed" if self.budget_passed else f"budget FAILED ({self.over_budget})")
        return ", ".join(parts)

    def _repr_html_(self) -> str:
        columns = [column for column in self.columns() if column.terminal]
        cells = [(self.name, [column.quantized for column in columns])]
        if self.against:
            cells.insert(0, (self.against, [column.baseline for column in columns]))
        rows = [[name, *("\n".join((cell.text, *cell.below)) for cell in row)] for name, row in cells]
        title = f"{self.protocol.scored_tokens} tokens of {self.protocol.source}"
        return html_table(title, ("model", *(column.head for column in columns)), rows, (self.sentence(),))

    def _measured(self) -> list[tuple[Metric, Section]]:
        return [(metric, self.sections[metric.name]) for metric in metrics() if metric.name in self.sections]

    def to_json(self) -> str:
        """The report as JSON text, keys as in docs/evaluation.md."""
        return _dumped(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EvalReport:
        """Read what `to_json` wrote.

        Raises:
            DataError: if the text is no report, or one of another schema version.
        """
        return cls._from(_parsed(text))

    @classmethod
    def _from(cls, data: Any) -> EvalReport:
        if not isinstance(data, Mapping) or "schema_version" not in data:
            raise DataError("this is no report: no JSON object with a schema_version; give what `llmquant eval` wrote")
        version = data["schema_version"]
        if version != SCHEMA_VERSION:
            raise DataError(
                f"the report has schema version {version!r}, this llmquant reads {SCHEMA_VERSION}; evaluate again"
            )
        report = _checked(cls, json.dumps(data))
        sections = {
            name: _checked(_section_of(name), json.dumps(section), f"sections.{name}.")
            for name, section in report.sections.items()
        }
        report = replace(report, sections=sections)
        least = {"seed": (report.seed, 0), "protocol.scored_tokens": (report.protocol.scored_tokens, 1)}
        for place, model in (("baseline", report.baseline), ("quantized", report.quantized)):
            least |= {f"{place}.parameters": (model.parameters, 1)} if model else {}
        for place, (value, wanted) in least.items():
            if value < wanted:
                raise DataError(f"the report is malformed at {place!r}: {value}, where at least {wanted} is possible")
        return report

    @classmethod
    def load(cls, path: str | Path) -> EvalReport:
        """Read a report file; errors as in `from_json`."""
        return cls.from_json(read_plain(Path(path), DataError).decode("utf-8", errors="replace"))


def to_json(reports: Sequence[EvalReport]) -> str:
    """The JSON text of a report, or a list of several."""
    return reports[0].to_json() if len(reports) == 1 else _dumped([asdict(report) for report in reports])


def read_reports(files: Sequence[str | Path]) -> list[EvalReport]:
    """The reports of all files, each of which holds one or a list; those of one name are told apart by their file's.

    Raises:
        DataError: as `EvalReport.from_json`, with the name of the file.
    """
    found: list[tuple[EvalReport, Path]] = []
    for file in map(Path, files):
        try:
            data = _parsed(read_plain(file, DataError).decode("utf-8", errors="replace"))
            if data == []:
                raise DataError("the list holds no report")
            found += [(EvalReport._from(each), file) for each in (data if isinstance(data, list) else [data])]
        except DataError as error:
            raise DataError(str(error) if str(file) in str(error) else f"{file}: {error}") from None
    files_of: dict[str, list[Path]] = {}
    for report, file in found:
        files_of.setdefault(report.name, []).append(file)
    labels = {name: iter(_labels(where)) for name, where in files_of.items()}
    return [
        replace(report, name=f"{report.name} ({next(labels[report.name])})")
        if len(files_of[report.name]) > 1
        else report
        for report, _ in found
    ]


def _labels(where: Sequence[Path]) -> list[str]:
    """What tells files apart: their names, those of their folders, or numbers."""
    stems, folders = [file.stem for file in where], [file.absolute().parent.name for file in where]
    numbers = [str(number) for number in range(1, len(where) + 1)]
    return next(labels for labels in (stems, folders, numbers) if len(set(labels)) == len(labels))


def _parsed(text: str) -> Any:
    """The JSON value, with numbers that can be measured only.

    Raises:
        DataError: names the field of a number that cannot.
    """
    try:
        data = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _DIGITS else math.inf)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the report is not JSON: {error}") from None
    waiting = [("", data, 0)]
    while waiting:
        place, value, depth = waiting.pop()
        if isinstance(value, (int, float)) and not -_LARGEST < value < _LARGEST:
            raise DataError(f"the report is malformed at {place!r}: NaN, infinite, or no number that can be measured")
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        if inside and depth == MAX_DEPTH:
            raise DataError(f"the report is malformed at {place[:80]!r}: nested more than {MAX_DEPTH} deep")
        waiting += [(f"{place}.{key}" if place else str(key), each, depth + 1) for key, each in inside]
    return data


def _dumped(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _section_of(name: str) -> type[Section]:
    try:
        return find(name).section
    except RecipeError:
        known = listed(metric.name for metric in metrics())
        raise DataError(
            f"the report has a section of the metric {name!r}, which is not installed here; there are {known}"
        ) from None


@cache  # making one takes longer than its use
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _checked(kind: type[Any], text: str, place: str = "") -> Any:
    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = (place + ".".join(map(str, first["loc"]))).rstrip(".")
        raise DataError(f"the report is malformed at {where!r}: {first['msg']}") from None
