"""Tokens per second of a model, as a multiple of the baseline's in its own dtype and in the fastest one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from rich.table import Table

from llmquant.compat.foreign_layers import foreign_method
from llmquant.eval.lines import accuracy_text, speedup
from llmquant.eval.markup import Markup, element, join, table
from llmquant.eval.metrics import base
from llmquant.eval.metrics.base import Cell, Column, Panel
from llmquant.eval.speed.bench import Contender, bench
from llmquant.eval.speed.speeds import PHASES, Phase, Row, Speeds
from llmquant.eval.speed.table import Line, busy_warning, labels, memory_lines, slower_lines, speed_lines, speed_table
from llmquant.eval.speed.throughput import ThroughputOptions
from llmquant.eval.statistics import Spread
from llmquant.memory import free_bytes
from llmquant.nn.counting import is_packed, weight_count
from llmquant.words import dtype_name, kernels_text, number

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llmquant.eval.pair import Pair
    from llmquant.eval.result import EvalReport

PLACE = 50
ALONE = True
ABSENT = "Speed was not measured."
Options = ThroughputOptions

# Dense dtypes that may be the fastest, on a CPU and on a GPU: CPUs multiply float16 slowly, GPUs float32.
_FAST = ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16))
_SPARE = 0.7  # share of the free memory that one more version of the baseline may take


@dataclass(frozen=True, kw_only=True)
class Section(base.Section, Speeds):
    """The baseline in every dtype that was timed, its own first; the last row is the model that the report is about."""

    @property
    def quantized(self) -> Row:
        """The model that the report is about."""
        return self.rows[-1]

    @property
    def dense(self) -> tuple[Row, ...]:
        """The baseline in each dtype; nothing where the model is alone."""
        return self.rows[:-1]

    def ratio(self, phase: Phase, place: int = 0) -> Spread | None:
        """Speed in a cell, by its number, over that of the baseline in its own dtype; None without either."""
        if not self.dense or place >= len(self.cells):
            return None
        return self.quantized.cells[place].over(self.rows[0].cells[place], phase)

    @property
    def decode_ratio(self) -> Spread | None:
        """As `ratio`, of decoding in the first cell."""
        return self.ratio("decode")


def measure(pair: Pair, options: ThroughputOptions) -> Section:
    """Time all candidates of a comparison in turn with the baseline, in the accuracy that they have by default."""
    speeds = pair.once("speed", lambda: _race(pair, options))
    dense = len(speeds.rows) - len(pair.candidates)
    row = replace(speeds.rows[dense + pair.place], name=pair.subject.name)
    return Section(**vars(replace(speeds, rows=(*speeds.rows[:dense], row))))


def _race(pair: Pair, options: ThroughputOptions) -> Speeds:
    dense, left_out = ({}, []) if pair.alone else dense_versions(pair.baseline)
    contenders = [Contender(name, model) for name, model in dense.items()]
    contenders += [Contender("", model, dense=False) for model in pair.candidates]
    speeds = bench(contenders, options, progress=pair.progress)
    return replace(speeds, left_out=(*speeds.left_out, *left_out))


def dense_versions(model: PreTrainedModel) -> tuple[dict[str, PreTrainedModel], list[str]]:
    """The model in every dtype that may be the fastest where it lies, its own first; and what memory left out.

    A packed model has one version, itself.
    """
    own = dtype_name(model.dtype)
    if is_packed(model) or foreign_method(model):
        return {f"packed {own}": model}, []
    others = [dtype for dtype in _FAST[model.device.type != "cpu"] if dtype != model.dtype]
    found, left_out = {own: model}, []
    for dtype in others:
        name = dtype_name(dtype)
        free = free_bytes(model.device)
        if free is not None and weight_count(model) * dtype.itemsize > _SPARE * free:
            left_out.append(f"the baseline in {name}: too little memory")
            continue
        found[name] = copy.deepcopy(model)
        torch.nn.Module.to(found[name], dtype)  # in place; transformers' own `to` takes no dtype for some models
    return found, left_out


def columns(section: Section, report: EvalReport) -> list[Column]:
    """Prefill and decode in the first cell, for the page; the terminal has a table of its own."""
    if not section.cells:
        return []
    note = _note(section, report)
    return [Column(phase, note, Cell("1×"), _cell(section, phase), terminal=False) for phase in PHASES]


def _cell(section: Section, phase: Phase) -> Cell:
    """Each ratio with the dense dtype, the speeds and the rounds that it comes from."""
    lines = comparisons(section, 0, phase)
    if not lines:
        return Cell(f"{number(section.quantized.cells[0].speed(phase).median)} tok/s")
    return Cell("", page=join(*(part for each in lines for part in _speed_lines(each))))


def _speed_lines(each: SpeedLine) -> list[Markup]:
    sign, style = {"slower": ("▼ slower, ", "bad"), "faster": ("▲ ", "good"), "equal": ("", None)}[each.kind]
    ratio, _, spread_of = each.ratio.replace("x", "×", 1).partition(" ")
    against = element("small", f"of {each.against}", class_="words")
    return [
        element("div", element("span", f"{sign}{ratio}", class_=style), against),
        element("small", f"{spread_of + ', ' if spread_of else ''}{each.rounds}"),
        element("small", f"{each.speeds} tok/s"),
    ]


def tables(reports: Sequence[EvalReport]) -> list[Table]:
    """One for all models that took turns, with the baseline they have in common."""
    return [speed_table(speeds, "speed and memory") for speeds in _together(reports)]


def panels(reports: Sequence[EvalReport]) -> list[Panel]:
    """Every model in every cell, where there are several, and why some are slower; the columns have the first cell."""
    parts = []
    for speeds in _together(reports):
        reasons = element("ul", *(element("li", line) for line in slower_lines(speeds)))
        shown = [_page_table(speeds)] if speeds.cells[1:] else []
        parts += [*shown, reasons] if slower_lines(speeds) else shown
    note = "Tokens per second with quartiles; below, the ratios to the first row and to the fastest dense one (*)."
    return [Panel("Speed by batch and context", join(*parts), note)] if parts else []


def _page_table(speeds: Speeds) -> Markup:
    names = labels(speeds.rows)
    rows = [
        [
            str(cell), name, *(_lines(speed_lines(speeds, row, place, phase)) for phase in PHASES),
            _lines(memory_lines(row, place)),
        ]
        for place, cell in enumerate(speeds.cells) for row, name in zip(speeds.rows, names, strict=True)
    ]  # fmt: skip
    return table(("batch and context", "model", "prefill tok/s", "decode tok/s", "memory"), rows, "speeds")


def _lines(lines: Sequence[Line]) -> Markup:
    numbers = (element("span", each.text, class_="bad" if each.slower else None) for each in lines)
    small = (element("small", each.beside) for each in lines)
    return element("div", *(element("div", *line) for line in zip(numbers, small, strict=True)))


def _together(reports: Sequence[EvalReport]) -> list[Speeds]:
    """Sections of the same rounds as one, which have their dense rows in common; the models bear the reports' names."""
    found: dict[str, Speeds] = {}
    for name, section in Section.of(reports):
        one = replace(section, rows=(*section.dense, replace(section.quantized, name=name)))
        key = repr(section.dense) if section.dense else name
        found[key] = replace(found[key], rows=(*found[key].rows, one.rows[-1])) if key in found else one
    return list(found.values())


def _note(section: Section, report: EvalReport) -> str:
    dtypes = ", ".join(row.name for row in section.dense)
    against = (
        f" The baseline in {dtypes} and the quantized model take turns within each round; the ratios are of each "
        "round, median and quartiles, against the checkpoint's own dtype and against the fastest. Below each ratio: "
        "its own baseline and rounds."
    )
    cell, (threads, device) = section.cells[0], (report.machine[key] for key in ("threads", "device"))
    return " ".join(
        [
            f"Forward passes with a cache, batch {cell.batch_size}: {cell.context} tokens of prompt, then "
            f"{section.decode_tokens} single tokens; {threads} threads on {device}.{against if dtypes else ''}"
            f"{accuracy_text(section.quantized.accuracy)}",
            *(f"Left out: {each}." for each in section.left_out),
            *([f"{warning[0].upper()}{warning[1:]}."] if (warning := busy_warning(section)) else []),
        ]
    )


def words(section: Section, report: EvalReport) -> list[str]:
    """How fast a token is decoded, in the first cell."""
    if not section.cells:
        return []
    lines = comparisons(section, 0, "decode")
    if not lines:
        return [f"decode {number(section.quantized.cells[0].speed('decode').median)} tok/s"]
    against = ((each.ratio, *each.against.partition(", ")) for each in lines)
    return [f"decode {ratio} of {dtype}" + (f" ({which})" if which else "") for ratio, dtype, _, which in against]


@dataclass(frozen=True, slots=True)
class SpeedLine:
    """One phase in one cell against the baseline in one dtype, ready to print."""

    against: str
    ratio: str
    kind: str
    speeds: str
    rounds: str


def comparisons(section: Section, place: int, phase: Phase) -> list[SpeedLine]:
    """Against the baseline in its own dtype and, where that is another, the fastest one."""
    quantized, found = section.quantized.cells[place], []
    fastest = section.fastest(place, phase)
    for row in section.against(section.quantized, place, phase) if section.dense else ():
        timed = row.cells[place]
        ratio = quantized.over(timed, phase)
        words = [row.name, *(["the checkpoint's"] if row is section.rows[0] else [])]
        words += ["the fastest"] if row is fastest and len(section.dense) > 1 else []
        speeds = f"{number(timed.speed(phase).median)} → {number(quantized.speed(phase).median)}"
        rounds = f"{ratio.runs} round{'' if ratio.runs == 1 else 's'}"
        found.append(SpeedLine(", ".join(words), *speedup(ratio), speeds, rounds))
    return found


def kernels_line(report: EvalReport) -> str:
    """Which kernels ran and in which accuracy, while the loss was measured and while the speed was; "" if not known."""
    scored = kernels_text(report.kernels)
    section = report.get(Section)
    timed = kernels_text(section.quantized.kernels) if section else ""
    if not timed or timed == scored:
        return scored
    return f"loss by {scored}; speed by {timed}" if scored else f"speed by {timed}"
