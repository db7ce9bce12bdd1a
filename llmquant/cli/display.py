"""What the command line shows while it works: bars in a terminal, lines where the output goes to a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from llmquant.memory import peak_resident_bytes
from llmquant.progress import Progress
from llmquant.words import bytes_text, duration, escaped, printable

_SECONDS_BETWEEN_LINES = 5.0
_WIDE = 100  # columns; below, the bar is short and the last layer's error is not escaped


@dataclass
class Stage:
    """How far a stage is, and how long it will go on.

    The time left is that of the steps so far, by the work that each was: a bar that looks only at the last seconds
    has nothing to say when a step takes a minute. `work` is that of all steps still to be done when the stage begins.
    """

    name: str
    total: int
    unit: str
    work: float
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    detail: str = ""
    _began: float = field(init=False)
    _last: float = field(init=False)
    _worked: float = 0.0
    _largest: float = 0.0

    def __post_init__(self) -> None:
        self._began = self._last = self.clock()

    def step(self, work: float, steps: int = 1) -> None:
        """More steps are done; `work` is 0 if an earlier run did them."""
        self.done += steps
        self._worked += work
        self._largest = max(self._largest, work)
        self._last = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began; it stands still at the end."""
        return (self._last if self.done >= self.total else self.clock()) - self._began

    @property
    def left(self) -> float | None:
        """Seconds left; None before the first step of about the usual size is done."""
        if self.total == 0 or self._worked <= 0 or self._worked < self.work / self.total / 2:
            return None
        pace = (self._last - self._began) / self._worked
        remaining = max(self.work - self._worked, 0.0)
        # It counts down between two steps, but not below what is left when the running one ends.
        after_this = pace * max(remaining - self._largest, 0.0)
        return max(pace * remaining - (self.clock() - self._last), after_this)

    @property
    def count(self) -> str:
        """Such as "3/30 blocks"."""
        return f"{self.done}/{self.total} {self.unit}"

    @property
    def time(self) -> str:
        """Time left, or what there is to say of it."""
        if self.done >= self.total:
            return f"in {duration(self.elapsed)}"
        left = self.left
        if left is None:
            first = "" if self.done else f"first {self.unit.removesuffix('s') or 'second'}, "
            return f"{first}{duration(self.elapsed)} so far"
        return f"{duration(left)} left"

    @property
    def short_time(self) -> str:
        """The same for a narrow terminal."""
        return self.time if self.done >= self.total or self.left is not None else f"{duration(self.elapsed)} so far"


class RunDisplay(Progress):
    """Shows stages with their steps, the time left, peak memory and the last layer's error; if quiet, only notes."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic, *, quiet: bool = False) -> None:
        self._console, self._clock = console, clock
        self._stage: Stage | None = None
        bars = console.is_terminal and not console.is_dumb_terminal and not quiet
        self._view = _Bars(console) if bars else _Lines(Console(quiet=True) if quiet else console, clock)

    def __enter__(self) -> RunDisplay:
        self._view.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.stop()

    def stage(self, name: str, total: int, *, unit: str = "steps", work: float | None = None) -> None:
        self._stage = Stage(name, total, unit, total if work is None else work, self._clock)
        self._view.begin(self._stage)

    def step(self, detail: str = "", *, steps: int = 1, work: float | None = None) -> None:  # noqa: ARG002
        assert self._stage is not None
        self._stage.step(steps if work is None else work, steps)
        self._view.moved(self._stage)

    def layer(self, name: str, loss: float) -> None:
        if self._stage is not None:
            self._stage.detail = f"{'.'.join(name.split('.')[-2:])} error {loss:.2%}"

    def loss(self, value: float) -> None:
        if self._stage is not None:
            self._stage.detail = f"loss {value:.4f}"

    def note(self, text: str) -> None:
        self._console.print(f"[yellow]note:[/] {escaped(text)}", highlight=False, soft_wrap=True)


class _Lines:
    """A line when a stage begins and ends, and between them one every few seconds; each is written at once."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self._clock = console, clock
        self._last = clock()

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def begin(self, stage: Stage) -> None:
        self._print(f"{stage.name}: {stage.total} {stage.unit}")

    def moved(self, stage: Stage) -> None:
        if stage.done >= stage.total or self._clock() - self._last >= _SECONDS_BETWEEN_LINES:
            detail = f", {stage.detail}" if stage.detail else ""
            memory = f"peak memory {bytes_text(peak_resident_bytes())}"
            self._print(f"{stage.name}: {stage.count}, {stage.time}, {memory}{detail}")

    def _print(self, line: str) -> None:
        self._last = self._clock()
        self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


class _Bars:
    """One bar for each stage."""

    def __init__(self, console: Console) -> None:
        wide = console.width >= _WIDE
        columns = [
            TextColumn("{task.description:>11}", table_column=Column(no_wrap=True, min_width=11)),
            BarColumn(bar_width=20 if wide else 10),
            _StageColumn(lambda stage: stage.count),
            _StageColumn(lambda stage: stage.time if wide else stage.short_time),
            _StageColumn(lambda _: f"peak memory {bytes_text(peak_resident_bytes())}", style="dim"),
        ]
        if wide:
            columns.append(_StageColumn(lambda stage: stage.detail, style="dim"))
        self._bars = RichProgress(*columns, console=console, refresh_per_second=2)
        self._tasks: dict[int, Any] = {}

    def start(self) -> None:
        self._bars.start()

    def stop(self) -> None:
        self._bars.stop()

    def begin(self, stage: Stage) -> None:
        self._tasks[id(stage)] = self._bars.add_task(escaped(stage.name), total=stage.total, stage=stage)

    def moved(self, stage: Stage) -> None:
        self._bars.update(self._tasks[id(stage)], completed=stage.done)


class _StageColumn(ProgressColumn):
    def __init__(self, text: Callable[[Stage], str], style: str = "") -> None:
        super().__init__(table_column=Column(no_wrap=True, overflow="ellipsis"))
        self._text, self._style = text, style

    def render(self, task: Task) -> Text:
        return Text(printable(self._text(task.fields["stage"])), style=self._style)
