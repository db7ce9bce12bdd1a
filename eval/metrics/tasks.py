"""Tasks of lm-evaluation-harness: how many answers of the baseline the quantized model keeps, loses and wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from llmquant.errors import DataError, RecipeError
from llmquant.eval.charts import Flip, flips
from llmquant.eval.lines import change, interval
from llmquant.eval.markup import Markup, breakable, element, folded, join, table
from llmquant.eval.metrics import base
from llmquant.eval.metrics.base import NOTHING, Cell, Column, Panel
from llmquant.eval.statistics import Estimate, exponential
from llmquant.eval.tasks import require
from llmquant.eval.tasks.result import Group, Measure, Task
from llmquant.words import number, percent, printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llmquant.eval.pair import Facts, Pair
    from llmquant.eval.result import EvalReport
    from llmquant.eval.tasks.harness import Answer
    from llmquant.eval.tasks.load import Loaded

PLACE = 45
BY_DEFAULT = False
ALONE = True
LIMITS = {"acc_drop": ("accuracy lost, in points", "largest_drop")}
_LEVEL = 0.05  # of McNemar's test
_ALONE = ("value", "95 % interval")
_HEAD = ("task", "documents", "measure", "baseline", "quantized", "change", "right → wrong", "wrong → right", "p")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which tasks.

    Attributes:
        names: of tasks or groups; "lambada", "piqa", "blimp" and "blimp_SET" work from files.
        files: the file or folder with a task's data, by its name.
        include: folders with definitions of tasks, in the harness's YAML.
        limit: use only each task's first documents.
        batch_size: sequences at once; chosen from the vocabulary and the longest text if None.
    """

    names: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    include: Sequence[str] = ()
    limit: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise DataError(f"metric 'tasks' cannot have {name} {given}; at least 1")


@dataclass(frozen=True)
class Section(base.Section):
    """Each task, and each group of tasks that was asked for.

    Attributes:
        harness: version of lm-evaluation-harness.
        limit: of documents of each task.
    """

    harness: str
    limit: int | None
    tasks: tuple[Task, ...]
    groups: tuple[Group, ...]

    @property
    def rows(self) -> list[Task | Group]:
        """Groups, and the tasks that are in none."""
        grouped = {name for group in self.groups for name in group.members}
        return [*self.groups, *(task for task in self.tasks if task.name not in grouped)]

    @property
    def largest_drop(self) -> Estimate:
        """Of the accuracies of all rows, the first of each, in points; a task that gains has a negative one.

        Raises:
            RecipeError: if no task has an accuracy.
        """
        if (worst := worst_of(self)) is None:
            raise RecipeError("the budget acc_drop cannot be held: none of the tasks has an accuracy")
        *_, found = worst
        low, high = (None if each is None else -100 * each for each in (found.high, found.low))
        return Estimate(-100 * found.value, low, high, 100 * (found.standard_error or 0.0))


def worst_of(section: Section) -> tuple[str, Measure, Estimate] | None:
    """The row that lost most of its accuracy, and how much; None where no accuracy was compared."""
    found = [
        (row.name, each, each.difference) for row in section.rows if (each := accuracy_of(row)) and each.difference
    ]
    return min(found, key=lambda each: each[2].value, default=None)


def accuracy_of(row: Task | Group) -> Measure | None:
    """The first accuracy of a task or group."""
    return next((each for each in row.measures if each.kind == "accuracy"), None)


def check(facts: Facts, options: Options) -> None:
    """The harness must be there, all tasks with their data, and a baseline for a budget."""
    _load(options)
    if facts.alone and "acc_drop" in facts.limits:
        raise RecipeError("the budget acc_drop is on a comparison; give a baseline, or lift the budget")


def _load(options: Options) -> Loaded:
    if not options.names:
        raise DataError(
            'metric \'tasks\' needs the names of tasks, such as --tasks lambada,piqa or {"names": ["piqa"]}'
        )
    require()
    from llmquant.eval.tasks.load import load

    return load(options.names, options.files, options.include)


def measure(pair: Pair, options: Options) -> Section:
    """Both models answer, computing as while losses are measured; the baseline once for all candidates."""
    loaded = _load(options)
    from lm_eval import __version__

    from llmquant.eval.tasks.compare import alone, compare
    from llmquant.eval.tasks.harness import ask

    def answers(model: PreTrainedModel, who: str) -> dict[str, tuple[Answer, ...]]:
        with pair.as_scored(model):
            return ask(
                model, pair.tokenizer, loaded, pair.progress, who=who, limit=options.limit,
                batch_size=options.batch_size,
            )  # fmt: skip

    before = None if pair.alone else pair.once("tasks", lambda: answers(pair.baseline, "baseline"))
    after = answers(pair.quantized, pair.subject.name)
    tasks, groups = compare(loaded, before or after, after, seed=pair.options.seed)
    if pair.alone:
        tasks, groups = alone(tasks), alone(groups)
    return Section(__version__, options.limit, tasks, groups)


def points(difference: Estimate) -> str:
    """A change of an accuracy in percentage points with its interval, such as "-1.6 [-2.9, -0.3]"."""
    if difference.low is None or difference.high is None:
        return _signed(difference.value)
    return f"{_signed(difference.value)} [{_signed(difference.low)}, {_signed(difference.high)}]"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"


def _value(measure: Measure, found: Estimate | None) -> str:
    if found is None:
        return ""
    return percent(found.value) if measure.kind == "accuracy" else number(found.value)


def _interval(measure: Measure) -> str:
    """Of the quantized model."""
    found = measure.quantized
    if measure.kind != "accuracy" or found.low is None or found.high is None:
        return interval(found)
    return f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _change(measure: Measure) -> str:
    found = measure.difference
    if found is None:
        return ""
    if measure.kind == "accuracy":
        return points(found)
    if measure.kind == "perplexity":
        return change(exponential(found))
    return f"{found.value:+.3g}" + ("" if found.low is None else f" [{found.low:+.3g}, {found.high:+.3g}]")


def columns(section: Section, report: EvalReport) -> list[Column]:
    """The row that lost most, for the page, which has no room for all; the terminal has a table of its own."""
    if (found := worst_of(section)) is None:
        return []
    name, worst, difference = found
    change, _, bounds = points(difference).partition(" ")
    lines = [bounds, f"from {_value(worst, worst.baseline)}"]
    if flips := worst.flips:
        lines.append(f"{flips.right_to_wrong} lost, {flips.wrong_to_right} won")
    small = element("small", breakable(name), class_="words"), *(element("small", text) for text in lines)
    return [
        Column("worst task", _note(section, report), NOTHING, Cell(change, page=join(change, *small)), terminal=False)
    ]


def _note(section: Section, report: EvalReport) -> str:
    first = f" Only the first {section.limit} documents of each task." if section.limit else ""
    return (
        f"Tasks of lm-evaluation-harness {section.harness}, no chat template; both models computed in "
        f"{report.loss_note}. The change is in percentage points with the score interval for paired samples (Tango); "
        "lost: right answers of the baseline that are wrong now; p: McNemar's exact test. Groups average their tasks."
        f"{first}"
    )


def words(section: Section, report: EvalReport) -> list[str]:
    """The row that lost most."""
    if (worst := worst_of(section)) is None:
        return []
    name, _, difference = worst
    which = "" if len(section.rows) == 1 else f", the worst of {len(section.rows)} tasks"
    return [f"{name} {points(difference)} points{which}"]


def tables(reports: Sequence[EvalReport]) -> list[Table]:
    """A row for each measure of each row."""
    if not (measured := Section.of(reports)):
        return []
    alone = reports[0].baseline is None
    title = "95 % intervals" if alone else "lost and won are answers; change in points, or in % of a perplexity"
    found = Table(title=Text(f"\ntasks: {title}"))
    found.title_justify, found.box, found.header_style, found.pad_edge = "left", None, "dim", False
    for head in ("model", "task"):
        found.add_column(head, overflow="fold")
    for head in _ALONE if alone else ("baseline", "quantized", "change", "lost", "won", "p"):
        found.add_column(head, justify="right", overflow="fold")
    for name, section in measured:
        shown = printable(name)
        for row in section.rows:
            for measure in row.measures:
                task = row.name if measure is row.measures[0] else f"  {measure.name}"
                found.add_row(Text(shown), Text(printable(task)), *_cells(measure))
                shown = ""
    return [found]


def _cells(measure: Measure) -> list[str]:
    value, flips = _value(measure, measure.quantized), measure.flips
    if measure.baseline is None:
        return [value, _interval(measure)]
    changed = [str(flips.right_to_wrong), str(flips.wrong_to_right), number(flips.p, 2)] if flips else ["", "", ""]
    return [_value(measure, measure.baseline), value, _change(measure), *changed]


def panels(reports: Sequence[EvalReport]) -> list[Panel]:
    """The answers that flipped, and all measures of all tasks, and groups, in a table a report."""
    known = Section.of(reports)
    head = _HEAD if reports[0].baseline else (*_HEAD[:3], *_ALONE)
    parts = folded([(name, table(head, map(_row, _lines(section)), named=True)) for name, section in known])
    charts = _flips(known)
    return [Panel("Tasks", join(charts, parts), _FLIPS if charts else _BARE)] if parts else []


_BARE = "By lm-evaluation-harness, no chat template, with 95 % intervals; those of accuracies are Wilson's."
_FLIPS = (
    "Answers of the baseline that are wrong now (lost), and wrong ones that are right now (won), as shares of each "
    "task's documents; all charts in one scale. Below p = 0.05 of McNemar's exact test, that one is more is not chance."
)


def _flips(known: Sequence[tuple[str, Section]]) -> Markup:
    """A chart for each task and group, with a row for each model, and in words whether it may be chance."""
    rows: dict[str, list[tuple[Flip, float]]] = {}
    for name, section in known:
        for row in section.rows:
            if (measure := accuracy_of(row)) and (found := measure.flips):
                flip = Flip(name, found.right_to_wrong, found.wrong_to_right, row.size)
                rows.setdefault(row.name, []).append((flip, found.p))
    every = [flip for each in rows.values() for flip, _ in each]
    end = max((max(flip.lost, flip.won, 1) / flip.documents for flip in every), default=1.0)
    tiles = [
        element(
            "figure", element("figcaption", task), flips([flip for flip, _ in each], end).svg(both=False),
            *(element("small", f"{flip.name}: {_in_words(flip, p)}") for flip, p in each),
        )
        for task, each in rows.items()
    ]  # fmt: skip
    return element("div", *tiles, class_="tiles") if tiles else Markup()


def _in_words(flip: Flip, p: float) -> str:
    if not flip.lost + flip.won:
        return "no answer changed"
    if flip.lost == flip.won:
        return "as many lost as won"
    side = "lost" if flip.lost > flip.won else "won"
    return f"more {side}, {'not by chance' if p < _LEVEL else 'which may be chance'} (p {number(p, 2)})"


def _lines(section: Section) -> list[tuple[Task | Group, Measure]]:
    return [(row, measure) for row in (*section.groups, *section.tasks) for measure in row.measures]


def _row(line: tuple[Task | Group, Measure]) -> list[str]:
    row, measure = line
    return [row.name, str(row.size), measure.name, *_cells(measure)]
