"""Tokens per second of both models, as a multiple of the baseline's in its own dtype and in the fastest one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from llmquant.eval.lines import accuracy_text, speedup
from llmquant.eval.markup import Markup, element, join
from llmquant.eval.metrics import base
from llmquant.eval.metrics.base import NOTHING, Cell, Column
from llmquant.eval.throughput import Speed, SpeedProtocol, ThroughputOptions, check_prompt, measure_throughput
from llmquant.words import kernels_text, number, printable

if TYPE_CHECKING:
    from llmquant.eval.pair import Facts, Pair
    from llmquant.eval.result import EvalReport

PLACE = 50
ABSENT = "Speed was not measured."
Options = ThroughputOptions


@dataclass(frozen=True)
class Section(base.Section):
    """Speeds, and how they were measured."""

    baseline: Speed
    quantized: Speed
    protocol: SpeedProtocol


def check(facts: Facts, options: ThroughputOptions) -> None:
    """A window must be long enough for prompt and decoded tokens."""
    check_prompt(facts.windows.ids.shape[1], options)


def measure(pair: Pair, options: ThroughputOptions) -> Section:
    """Time both models in turn, in the accuracy that they have by default."""
    timed = measure_throughput(*pair.models, pair.windows.ids[0], options, progress=pair.progress)
    return Section(timed.baseline, timed.quantized, timed.protocol)


def columns(section: Section, report: EvalReport) -> list[Column]:
    """Prefill and decode, for the page; the terminal has a table of its own."""
    protocol = section.protocol
    return [
        Column(phase, _note(protocol), Cell("1×"), _cell(section, phase), terminal=False, remark=protocol.note)
        for phase in ("prefill", "decode")
    ]


def _cell(section: Section, phase: str) -> Cell:
    """Each ratio with the dense dtype, the speeds and the rounds that it comes from."""
    lines = [each for each in comparisons(section) if each.phase == phase]
    return Cell("", page=join(*(part for each in lines for part in _speed_lines(each)))) if lines else NOTHING


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
    """A row for each phase and dense dtype; the ratio is that of the rounds in which both ran."""
    if not (timed := Section.of(reports)):
        return []
    title = Text("\nspeed, as a multiple of the baseline's")
    table = Table(title=title, title_justify="left", box=None, header_style="dim", pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("phase")
    table.add_column("ratio", justify="right")
    table.add_column("of the baseline in", min_width=len("checkpoint's,"))
    table.add_column("tokens per second", justify="right")
    table.add_column("measured in", justify="right")
    for name, section in timed:
        shown = printable(name)
        for each in comparisons(section):
            slower = each.kind == "slower"
            ratio = Text(f"slower: {each.ratio}" if slower else each.ratio, style="red" if slower else "")
            table.add_row(Text(shown), each.phase, ratio, each.against, Text(each.speeds, style="dim"), each.rounds)
            shown = ""
    return [table]


def _note(speed: SpeedProtocol) -> str:
    dtypes = ", ".join(each.dtype for each in speed.dense)
    return (
        f"Forward passes with a cache, batch {speed.batch_size}: {speed.prompt_tokens} tokens of prompt, then "
        f"{speed.decode_tokens} single tokens; {speed.threads} threads on {speed.device}. The baseline in {dtypes} and "
        "the quantized model take turns within each round; the ratios are of each round, median and quartiles, against "
        "the checkpoint's own dtype and against the fastest. Below each ratio: its own baseline and rounds."
        f"{accuracy_text(speed.accuracy)}{f' {speed.note}.' if speed.note else ''}"
    )


def words(section: Section, report: EvalReport) -> list[str]:
    """How fast a token is decoded."""
    decode = (each for each in comparisons(section) if each.phase == "decode")
    against = ((each.ratio, *each.against.partition(", ")) for each in decode)
    return [f"decode {ratio} of {dtype}" + (f" ({which})" if which else "") for ratio, dtype, _, which in against]


@dataclass(frozen=True, slots=True)
class SpeedLine:
    """One phase of the speed against the baseline in one dtype, ready to print."""

    phase: str
    against: str
    ratio: str
    kind: str
    speeds: str
    rounds: str


def comparisons(section: Section) -> list[SpeedLine]:
    """Prefill and decode, each against the baseline in its own dtype and, where that is another, the fastest one."""
    protocol, quantized = section.protocol, section.quantized
    found, dtypes = [], [each.dtype for each in protocol.dense]
    for phase, fastest in (("prefill", protocol.fastest_prefill), ("decode", protocol.fastest_decode)):
        for dense in protocol.dense:
            if dense.dtype not in (dtypes[0], fastest):
                continue
            ratio = getattr(dense, f"{phase}_speedup")
            rounds = f"{ratio.runs} round{'' if ratio.runs == 1 else 's'}"
            words = [dense.dtype, *(["the checkpoint's"] if dense.dtype == dtypes[0] else [])]
            words += ["the fastest"] if dense.dtype == fastest and len(dtypes) > 1 else []
            speeds = f"{number(getattr(dense, phase).median)} → {number(getattr(quantized, phase).median)}"
            found.append(SpeedLine(phase, ", ".join(words), *speedup(ratio), speeds, rounds))
    return found


def kernels_line(report: EvalReport) -> str:
    """Which kernels ran and in which accuracy, while the loss was measured and while the speed was; "" if not known."""
    scored = kernels_text(report.kernels)
    section = report.get(Section)
    timed = kernels_text(section.protocol.kernels) if section else ""
    if not timed or timed == scored:
        return scored
    return f"loss by {scored}; speed by {timed}" if scored else f"speed by {timed}"
