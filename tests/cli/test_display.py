"""What a user sees of a run while it goes on."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from llmquant.cli.display import RunDisplay, Stage


class Clock:
    """Time as the test sets it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def stage(clock: Clock, total: int, work: float | None = None) -> Stage:
    """A stage of `total` blocks."""
    return Stage("quantize", total, "blocks", total if work is None else work, clock)


def test_the_time_left_is_known_after_one_step_however_long_it_took() -> None:
    clock = Clock()
    shown = stage(clock, 30)
    assert shown.left is None
    clock.now += 90
    assert shown.time == "first block, 1 min 30 s so far"
    shown.step(1)
    assert shown.left == pytest.approx(29 * 90)
    assert shown.count == "1/30 blocks"
    clock.now += 60
    assert shown.left == pytest.approx(29 * 90 - 60)  # counts down
    clock.now += 600
    assert shown.left == pytest.approx(28 * 90)  # but not below the steps that have not begun
    shown.step(1)
    assert shown.left == pytest.approx((90 + 660) / 2 * 28)


def test_steps_count_by_their_work() -> None:
    clock = Clock()
    shown = stage(clock, 4, work=1 + 3 * 100)
    clock.now += 5
    shown.step(1)  # the embeddings: quick, and no measure of the blocks
    assert shown.left is None
    assert shown.time == "5 s so far"  # of the second, so not "first block"
    clock.now += 50
    shown.step(100)
    assert shown.left == pytest.approx(55 / 101 * 200)


def test_steps_of_an_earlier_run_are_no_measure_of_the_pace() -> None:
    clock = Clock()
    shown = stage(clock, 30, work=10)
    for _ in range(20):
        shown.step(0)
    assert shown.count == "20/30 blocks"
    assert shown.left is None
    clock.now += 60
    shown.step(1)
    assert shown.left == pytest.approx(9 * 60)


def test_the_end_says_how_long_it_took() -> None:
    clock = Clock()
    shown = stage(clock, 2)
    for _ in range(2):
        clock.now += 40
        shown.step(1)
    clock.now += 1000
    assert shown.time == "in 1 min 20 s"


def lines_of(clock: Clock, steps: int, seconds: float, terminal: bool = False, **options: object) -> str:
    """What a file gets of a stage whose steps take so long."""
    file = io.StringIO()
    display = RunDisplay(Console(file=file, width=120, force_terminal=terminal, **options), clock)  # pyright: ignore
    with display:
        display.stage("quantize", steps, unit="shards")
        for number in range(steps):
            clock.now += seconds
            display.layer(f"model.layers.{number}.mlp.[/x]", 0.0123)
            display.step()
    return file.getvalue()


def test_a_file_gets_a_line_for_each_long_step() -> None:
    lines = lines_of(Clock(), 4, 60).splitlines()
    assert lines[0] == "quantize: 4 shards"
    assert len(lines) == 5
    assert lines[1].startswith("quantize: 1/4 shards, 3 min 00 s left, peak memory ")
    assert lines[1].endswith("mlp.[/x] error 1.23%")
    assert lines[4].startswith("quantize: 4/4 shards, in 4 min 00 s, peak memory ")


def test_a_file_gets_few_lines_of_short_steps() -> None:
    lines = lines_of(Clock(), 1000, 0.1).splitlines()
    assert 20 <= len(lines) <= 23
    assert "1000/1000 shards" in lines[-1]


def test_a_file_gets_no_control_characters() -> None:
    text = lines_of(Clock(), 3, 60)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


def test_each_line_is_there_at_once() -> None:
    class Buffered(io.StringIO):
        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    file, clock = Buffered(), Clock()
    display = RunDisplay(Console(file=file, width=120), clock)
    with display:
        display.stage("score", 10, unit="windows")
        assert file.flushed == "score: 10 windows\n"
        clock.now += 30
        display.step(steps=2)
        assert "score: 2/10 windows, 2 min 00 s left" in file.flushed
        display.note("[/x] \x1b[2J")
        assert file.flushed.endswith("note: [/x] \\x1b[2J\n")


def test_quiet_leaves_notes() -> None:
    file = io.StringIO()
    display = RunDisplay(Console(file=file, width=120, force_terminal=True), Clock(), quiet=True)
    with display:
        display.stage("score", 10)
        display.step(steps=10)
        display.note("heed this")
    assert "heed this" in file.getvalue()
    assert "score" not in file.getvalue()


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    text = lines_of(Clock(), 2, 60, terminal=True)
    assert "quantize: 1/2 shards, 1 min 00 s left" in text
    assert "\x1b[" not in text.replace("\x1b[0m", "")


@pytest.mark.parametrize("width", [80, 120])
def test_bars_say_what_they_count_and_when_it_ends(width: int) -> None:
    clock, file = Clock(), io.StringIO()
    display = RunDisplay(Console(file=file, width=width, force_terminal=True, _environ={"TERM": "xterm"}), clock)
    with display:
        display.stage("noise floor", 1600, unit="windows")
        clock.now += 5000
        display.stage("score", 10, unit="windows")
        clock.now += 300
        display.step(steps=4)
    shown = file.getvalue()
    for text in ("      score", "noise floor", "0/1600 windows", "4/10 windows", "7 min 30 s left", "peak memory"):
        assert text in shown
    assert "-:--" not in shown
    assert "…" not in shown
