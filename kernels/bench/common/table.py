"""A result as markdown: ours against the best peer, torch's dense product and the memory, and every time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmquant.kernels.bench.common.contender import OURS

Row = dict[str, Any]

NOT_MEASURED = "not measured"
_MOST_LINES = 25


def markdown(result: dict[str, Any]) -> str:
    """Everything; what went wrong comes last."""
    machine = result["machine"]
    head = f"{machine['device']}, {machine['cpu']}, {machine['isa']}; commit {result['commit']}; {result['seconds']} s"
    rows = [row for run in result["runs"] for row in run["rows"]]
    return "\n\n".join([head, summary(rows), *details(rows), *problems(result, rows)]) + "\n"


def summary(rows: list[Row]) -> str:
    """A line for each of ours."""
    lines = [
        "| T | shape | M | kernel | us | of stream | x dense | best peer | x best peer | error |",
        "|--:|---|--:|---|--:|--:|--:|---|--:|--:|",
    ]
    for row in rows:
        if row["kernel"] == OURS:
            cells = [row["threads"], f"{row['n']}x{row['k']}", row["m"], f"{row['scheme']} {row['mode']}"]
            cells += [_number(row, "us", 1), _number(row, "stream_share", 2), _number(row, "x_dense", 2)]
            cells += [row.get("best_peer", "-"), _number(row, "x_best_peer", 2)]
            cells.append("-" if row["error"] is None else f"{row['error']:.1e}")
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def details(rows: list[Row]) -> Iterator[str]:
    """Per thread count and shape: kernels down, M across; us, and times torch's dense product in brackets."""
    for place in dict.fromkeys((row["threads"], row["n"], row["k"]) for row in rows):
        here = [row for row in rows if (row["threads"], row["n"], row["k"]) == place]
        batches = sorted({row["m"] for row in here})
        times = {
            (row["name"], row["m"]): f"{row['us']:.1f} ({_number(row, 'x_dense', 2)})" for row in here if "us" in row
        }
        lines = [
            f"{place[1]}x{place[2]}, {place[0]} thread{'s' * (place[0] > 1)}:\n",
            "| kernel | bits | " + " | ".join(f"M={batch}" for batch in batches) + " |",
            "|---|--:|" + "--:|" * len(batches),
        ]
        for name, bits in dict.fromkeys((row["name"], row["bits"]) for row in here):
            cells = " | ".join(times.get((name, batch), "-") for batch in batches)
            lines.append(f"| {name} | {bits:g} | {cells} |")
        yield "\n".join(lines)


def problems(result: dict[str, Any], rows: list[Row]) -> Iterator[str]:
    """What failed, what was not timed, and what there was no time for."""
    runs = result["runs"]
    yield from _list("FAILED", [line for run in runs for line in run["failures"]])
    yield from _list(
        "ended a process", [f"{crash['step']}: {crash['reason']}" for run in runs for crash in run["crashes"]]
    )
    yield from _list("absent", [f"{name}: {why}" for name, why in runs[0]["peers"].items() if why != "takes part"])
    untimed: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if reason := row["problem"] or row["failed"]:
            untimed.setdefault((row["name"], reason), []).append(f"{row['n']}x{row['k']} M={row['m']}")
    lines = [f"{name}: {reason} ({len(at)} cells, first {at[0]})" for (name, reason), at in untimed.items()]
    yield from _list("not timed", lines)
    left = [name for run in runs for name in run["left_out"]]
    yield from _list("no time left for", [f"{len(left)} cells, first {left[0]}"] if left else [])


def _list(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
        yield "\n".join([f"{title}:", *(f"- {line}" for line in lines[:_MOST_LINES] + more)])


def _number(row: Row, name: str, digits: int) -> str:
    return f"{row[name]:.{digits}f}" if name in row else NOT_MEASURED if name == "us" else "-"
