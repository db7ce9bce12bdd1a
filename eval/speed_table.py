"""`Speeds` for the terminal: a row for each contender in each cell, and how it was measured."""

from __future__ import annotations

from collections import Counter

from rich.table import Table
from rich.text import Text

from llmquant.eval.lines import speedup
from llmquant.eval.speeds import PHASES, Phase, Row, Speeds
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
            phases = (_speed(speeds, row, place, phase) for phase in PHASES)
            table.add_row(Text(f"  {name}"), *phases, _memory(row, place))
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


def _speed(speeds: Speeds, row: Row, place: int, phase: Phase) -> Text:
    found = row.cells[place].speed(phase)
    text = Text(number(found.median))
    if found.q25 is not None:
        text.append(f" ({number(found.q25)}–{number(found.q75)})", style="dim")
    fastest = speeds.fastest(place, phase, static=row.static)
    text.append(FASTEST if row is fastest and row is not speeds.rows[0] else "")
    for other in speeds.against(row, place, phase):
        ratio, kind = speedup(row.cells[place].over(other.cells[place], phase))
        slower = kind == "slower"
        line = f"{SLOWER * slower}{ratio}{FASTEST if other is not speeds.rows[0] else ''}"
        text.append(f"\n{line}", style="red" if slower else "")
    return text


def _memory(row: Row, place: int) -> Text:
    timed = row.cells[place]
    text = Text(bytes_text(row.parameter_bytes))
    if timed.peak_bytes is not None:
        text.append(f" + {bytes_text(timed.peak_bytes)}")
    if timed.cache_bytes is not None:
        text.append(f"\ncache {bytes_text(timed.cache_bytes)}", style="dim")
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
    for line in reasons(speeds):
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


def reasons(speeds: Speeds) -> list[str]:
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
