"""What a metric is: a file of this package that measures one thing of a pair of models, and says how it is shown.

| name | what it is | without it |
|---|---|---|
| `Section` | frozen dataclass, a subclass of `base.Section`: what was measured, the keys in the JSON | needed |
| `measure(pair, options)` | gives a `Section`, or None where there is nothing to measure | needed |
| `PLACE` | a number: metrics are measured and shown in this order | 100, the last |
| `BY_DEFAULT` | False for what is only measured on request | True |
| `Options` | frozen dataclass of what can be set, all with defaults; it checks itself | no options |
| `check(pair, options)` | refuses before any model runs (and maybe is loaded) what could not be measured | no check |
| `ALONE` | True for what is also measured of a model without a baseline (`pair.alone`) | False: it compares |
| `columns(section, report)` | columns of the table, with the footnote that explains them | no columns |
| `words(section, report)` | parts of the sentence that sums up the report | no words |
| `panels(reports)` | sections of the page | no panels |
| `tables(reports)` | tables of its own for the terminal | none |
| `ABSENT` | what the page says below its footnotes where nothing was measured | nothing |
| `LIMITS` | literal: budget name -> (short name, where the estimate or number is in the section) | no budget |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict

from llmquant.eval.markup import Markup, folded

if TYPE_CHECKING:
    from rich.table import Table
    from typing_extensions import Self


@dataclass(frozen=True)
class Section:
    """What a metric measured; a subclass adds fields of plain values, tuples and dataclasses."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def metric(cls) -> str:
        """Name of the metric: that of its file."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def of(cls, reports: Sequence[Any]) -> list[tuple[str, Self]]:
        """Names of the reports (`EvalReport`) that have it, each with what was measured."""
        return [(report.name, section) for report in reports if (section := report.get(cls))]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOptions:
    """For metrics where nothing can be set."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the table."""

    text: str  # the number
    below: tuple[str, ...] = ()  # small print, in the terminal and on the page
    more: tuple[str, ...] = ()  # small print that only the page has
    page: Markup | None = None  # what stands on the page in place of all of these


NOTHING = Cell("–")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table, for one report."""

    head: str  # its title, which puts the cells of all reports into one column
    note: str  # footnote; columns of the same note share its number
    baseline: Cell
    quantized: Cell
    words: bool = False  # whether it holds words: they stand left, and come last
    terminal: bool = True  # False leaves the column to the page
    min_width: int | None = None  # in the terminal
    remark: str | None = None  # what the terminal says below the table, such as why there is no interval


@dataclass(frozen=True, slots=True)
class Panel:
    """A section of the page."""

    title: str
    content: Markup
    note: str | None = None

    @classmethod
    def folded(cls, title: str, parts: Sequence[tuple[str, Markup | None]], note: str | None = None) -> list[Panel]:
        """A panel with a foldable part per name; none where there is nothing."""
        content = folded(parts)
        return [cls(title, content, note)] if content else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A file of this package with what it leaves out filled in; the module's docstring explains each."""

    name: str
    section: type[Section]
    measure: Callable[..., Section | None]
    place: float = 100
    by_default: bool = True
    alone: bool = False
    options: Callable[..., Any] = NoOptions
    check: Callable[[Any, Any], None] = lambda *_: None
    columns: Callable[[Any, Any], Sequence[Column]] = lambda *_: ()
    words: Callable[[Any, Any], Sequence[str]] = lambda *_: ()
    panels: Callable[[Sequence[Any]], Sequence[Panel]] = lambda _: ()
    tables: Callable[[Sequence[Any]], Sequence[Table]] = lambda _: ()
    absent: str | None = None

    @classmethod
    def of(cls, name: str, module: Any) -> Metric:
        """The metric that a module defines."""
        of_types = {"section": "Section", "options": "Options"}
        constants = {each: each.upper() for each in ("place", "by_default", "alone", "absent")}
        spelled = {each.name: each.name for each in fields(cls)} | of_types | constants
        given: dict[str, Any] = {key: getattr(module, word) for key, word in spelled.items() if hasattr(module, word)}
        given["name"] = name
        return cls(**given)
