"""What the command line shows while and after it works."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Column, Table
from rich.text import Text

from llmquant.engine.journal import LayerRecord
from llmquant.engine.memory import peak_resident_bytes
from llmquant.engine.progress import Progress
from llmquant.engine.run import RunResult
from llmquant.eval.lines import verdict_line
from llmquant.eval.result import EvalReport
from llmquant.eval.table import render_table

_WORST_LAYERS = 5


def _whole() -> Column:
    return Column(no_wrap=True, overflow="ellipsis")


class _PeakMemoryColumn(ProgressColumn):
    def render(self, task: Task) -> Text:  # noqa: ARG002
        return Text(f"{peak_resident_bytes() / 1e9:.2f} GB", style="dim")


class RunDisplay(Progress):
    """Bars with time left, peak memory and the error of the last layer."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = RichProgress(
            TextColumn("{task.description:>10}"), BarColumn(bar_width=20), MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=_whole()),
            _PeakMemoryColumn(table_column=_whole()),
            TextColumn("[dim]{task.fields[detail]}", table_column=_whole()),
            console=console,
        )  # fmt: skip
        self._task: Any = None

    def __enter__(self) -> RunDisplay:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def stage(self, name: str, total: int) -> None:
        self._task = self._bars.add_task(name, total=total, detail="")

    def step(self, detail: str = "") -> None:  # noqa: ARG002
        self._bars.advance(self._task)

    def layer(self, name: str, record: LayerRecord) -> None:
        self._bars.update(self._task, detail=f"{'.'.join(name.split('.')[-2:])} {record.loss:.2%}")

    def note(self, text: str) -> None:
        self._console.print(f"[yellow]note:[/] {escape(text)}")

    def stages(self, name: str, done: int, total: int) -> None:
        """The same bars for an evaluation, which reports (stage, done, in all)."""
        tasks = {task.description: task.id for task in self._bars.tasks}
        if name not in tasks:
            tasks[name] = self._bars.add_task(name, total=total, detail="")
        self._bars.update(tasks[name], completed=done, total=total)


def print_result(console: Console, result: RunResult) -> None:
    """The end of a run: where it is, how large, which layers lost most, and what was unusual."""
    facts = result.provenance
    plan = facts["plan"]
    console.print(
        f"[bold green]{escape(str(result.folder))}[/]  {plan['bytes_before'] / 1e6:,.1f} MB -> "
        f"{plan['bytes_after'] / 1e6:,.1f} MB, {plan['bits_per_weight']:.2f} bits per weight; "
        f"{facts['verified_tensors']} tensors verified; "
        f"{facts['seconds']:.0f} s, peak {facts['peak_memory_bytes'] / 1e9:.2f} GB"
    )
    table = Table(title="Layers with the largest error", title_justify="left", box=None, header_style="dim")
    table.add_column("layer")
    table.add_column("scheme")
    table.add_column("rounding")
    table.add_column("error", justify="right")
    worst = sorted(facts["layers"].items(), key=lambda item: -item[1]["loss"])[:_WORST_LAYERS]
    for name, layer in worst:
        table.add_row(name, layer["scheme"], layer["method"], f"{layer['loss']:.3%}")
    console.print(table)
    for name, count in facts["counters"].items():
        console.print(f"[yellow]note:[/] {name.replace('_', ' ')}: {count}")


def print_reports(console: Console, reports: Sequence[EvalReport]) -> None:
    """Evaluations side by side, and a line on each."""
    console.print(render_table(reports))
    for report in reports:
        console.print(f"[bold]{report.name}[/]: {verdict_line(report)}", highlight=False)
