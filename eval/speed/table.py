"""`Speeds` for the terminal: a row for each contender in each cell, and how it was measured."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from llmquant.eval.lines import speedup
from llmquant.eval.speed.speeds import PHASES, Phase, Row, Speeds
from llmquant.machine import BUSY
from llmquant.words import bytes_text, number, printable

SLOWER, FASTEST = "▼ ", " *"


def speed_table(speeds: Speeds, title: str | None = None) -> Table:
    """Speeds, with the ratios to the first row and to the fastest dense one below them, and memory; for 80 columns."""
    table = Table(
        title=None if title is None else Text(f"\n{title}"), title_justify="left", box=None, header_style="dim",
        pad_edge=False, caption=_caption(speeds), caption_justify="left", caption_style="",
    )  # fmt: skip
    table.add_column("", overflow="fold")
    for head in ("prefill tok/s", "decode tok/s", "memory"):
        table.add_column(head, justify="right", no_wrap=True)
    names = labels(speeds.rows)
    for place, cell in enumerate(speeds.cells):
        table.add_row(Text(str(cell), style="bold"))
        for row, name in zip(speeds.rows, names, strict=True):
            cells = [*(speed_lines(speeds, row, place, phase) for phase in PHASES), memory_lines(row, place)]
            table.add_row(Text(f"  {name}"), *map(_text, cells))
    return table


def labels(rows: tuple[Row, ...]) -> list[str]:
    """Names of rows as people tell them apart."""
    twice = Counter((row.name, row.static) for row in rows)
    return [
        printable(row.name)
        + (f", {row.accuracy}" if twice[row.name, row.static] > 1 and row.accuracy else "")
        + ", static cache" * row.static
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a cell: a number, what stands small beside it, and whether the row is slower by it."""

    text: str
    beside: str = ""
    slower: bool = False


def speed_lines(speeds: Speeds, row: Row, place: int, phase: Phase) -> list[Line]:
    """Tokens per second, then each ratio; quartiles beside them, and the mark of the fastest dense row."""
    found = row.cells[place].speed(phase)
    first, fastest = speeds.rows[0], speeds.fastest(place, phase, static=row.static)
    quartiles = "" if found.q25 is None else f" ({number(found.q25)}–{number(found.q75)})"
    lines = [Line(number(found.median), quartiles + (FASTEST if row is fastest and row is not first else ""))]
    for other in speeds.against(row, place, phase):
        ratio, kind = speedup(row.cells[place].over(other.cells[place], phase))
        slower = kind == "slower"
        text, space, spread_of = ratio.partition(" ")
        mark = FASTEST if other is not first else ""
        lines.append(Line(SLOWER * slower + text, space + spread_of + mark, slower))
    return lines


def memory_lines(row: Row, place: int) -> list[Line]:
    """Weights and the rise of the peak, then the cache in it."""
    timed = row.cells[place]
    rise = "" if timed.peak_bytes is None else f" + {bytes_text(timed.peak_bytes)}"
    cache = [] if timed.cache_bytes is None else [Line("", f"cache {bytes_text(timed.cache_bytes)}")]
    return [Line(bytes_text(row.parameter_bytes) + rise), *cache]


def _text(lines: list[Line]) -> Text:
    text = Text()
    for place, line in enumerate(lines):
        text.append("\n" * bool(place) + line.text, style="red" if line.slower else "")
        text.append(line.beside, style="dim")
    return text


def _caption(speeds: Speeds) -> Text:
    """How it was measured."""
    found = Text()
    if speeds.cells:
        count = len(speeds.rows[0].cells[0].decode)
        turns = ", each with all rows in turn" if speeds.rows[1:] else ""
        found.append(
            f"a prompt of as many tokens as the context, then {speeds.decode_tokens} tokens one by one; {count} "
            f"round{'' if count == 1 else 's'}{turns}; "
            f"median (quartiles){_ratios(speeds)}; memory: weights + rise of the peak at work, with the cache in it",
            style="dim",
        )
    for line in slower_lines(speeds):
        found.append(f"\n{line}", style="red")
    for each in speeds.left_out:
        found.append(f"\nleft out: {printable(each)}", style="yellow")
    if warning := busy_warning(speeds):
        found.append(f"\nwarning: {warning}", style="bold yellow")
    return found


def _ratios(speeds: Speeds) -> str:
    if not speeds.rows[1:]:
        return ""
    marked = any(
        len(speeds.against(row, place, phase)) > 1
        for row in speeds.rows for place in range(len(speeds.cells)) for phase in PHASES
    )  # fmt: skip
    return f"; below, round by round, the ratio to {labels(speeds.rows)[0]}" + (
        f" and to the fastest dense row ({FASTEST.strip()})" if marked else ""
    )


def slower_lines(speeds: Speeds) -> list[str]:
    """Why rows are slower than a dense one, wherever they are."""
    return [
        f"slower: {name}, {each.phase}, {each.cell}: {'; '.join(each.because)}"
        for row, name in zip(speeds.rows, labels(speeds.rows), strict=True)
        for each in row.slower
    ]


def busy_warning(speeds: Speeds) -> str | None:
    """What to say where other programs had a large part of the machine."""
    if speeds.others is None or speeds.others <= BUSY:
        return None
    load = "" if speeds.load_average is None else f" (load average {speeds.load_average:.1f} when it began)"
    return (
        f"other programs kept {speeds.others:.0%} of the processors busy{load}; the ratios hold better than the "
        "speeds, and both are better measured on a quiet machine"
    )
