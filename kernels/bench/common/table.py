"""A result as markdown: ours against the best peer, torch's dense product and the memory, and every time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmquant.kernels.bench.common.contender import OURS
from llmquant.kernels.bench.common.plan import CPU, DRY

Row = dict[str, Any]

_MOST_LINES = 25
_ERROR = "error: relative, against float64"
_LEGEND = (
    "µs: of one call; of memory: its share of the speed of reads in the same turns; x dense, x best peer: how many "
    f"times as fast as torch's dense product, and as the fastest other kernel of about as many bits; {_ERROR}"
)
_DRY = f"dry run: the GPU kernels are checked in Triton's interpreter, and nothing is timed; {_ERROR}"


def markdown(result: dict[str, Any]) -> str:
    """Everything; what went wrong comes last."""
    machine, where = result["machine"], result["runs"][0]["plan"]["where"]
    place = [machine["cpu"], machine["isa"]] if where != "cuda" else [machine["device"], machine["cpu"]]
    head = f"{', '.join(place)}; commit {result['commit'] or 'unknown'}; {result['seconds']} s"
    rows = [row if where == CPU else row | {"threads": None} for run in result["runs"] for row in run["rows"]]
    times = [] if where == DRY else details(rows)
    return "\n\n".join([head, summary(rows), _DRY if where == DRY else _LEGEND, *times, *problems(result, rows)]) + "\n"


def summary(rows: list[Row]) -> str:
    """A line for each of ours, without columns that nobody has a value in."""
    lines = [
        {
            "threads": _cell(row, "threads", "d"), "weight": f"{row['n']}x{row['k']}", "M": str(row["m"]),
            "kernel": f"{row['scheme']} {row['mode']}", "µs": _cell(row, "us", ".1f"),
            "of memory": _cell(row, "stream_share", ".2f"), "x dense": _cell(row, "x_dense", ".2f"),
            "best peer": row.get("best_peer", "-"), "x best peer": _cell(row, "x_best_peer", ".2f"),
            "error": _cell(row, "error", ".1e"),
        }
        for row in rows
        if row["kernel"] == OURS
    ]  # fmt: skip
    shown = [name for name in (lines[0] if lines else ()) if any(line[name] != "-" for line in lines)]
    heads = ("---" if name in ("weight", "kernel", "best peer") else "--:" for name in shown)
    return "\n".join([_line(shown), f"|{'|'.join(heads)}|", *(_line([line[name] for name in shown]) for line in lines)])


def details(rows: list[Row]) -> Iterator[str]:
    """Per thread count and weight: kernels down, M across; µs, and times torch's dense product in brackets."""
    for threads, n, k in dict.fromkeys((row["threads"], row["n"], row["k"]) for row in rows):
        here = [row for row in rows if (row["threads"], row["n"], row["k"]) == (threads, n, k)]
        batches = sorted({row["m"] for row in here})
        times = {
            (row["name"], row["m"]): f"{row['us']:.1f} ({_cell(row, 'x_dense', '.2f')})" for row in here if "us" in row
        }
        on = f", {threads} thread{'s' * (threads > 1)}" if threads else ""
        lines = [
            f"{n}x{k}{on}, µs (x dense):\n",
            _line(["kernel", "bits", *(f"M={batch}" for batch in batches)]),
            "|---|--:|" + "--:|" * len(batches),
        ]
        for name, bits in dict.fromkeys((row["name"], row["bits"]) for row in here):
            lines.append(_line([name, f"{bits:g}", *(times.get((name, batch), "-") for batch in batches)]))
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
    lines = [f"{name}: {reason} ({_cells(at)})" for (name, reason), at in untimed.items()]
    yield from _list("not timed", lines)
    left = [name for run in runs for name in run["left_out"]]
    yield from _list("no time left for", [_cells(left)] if left else [])


def _list(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
        yield "\n".join([f"{title}:", *(f"- {line}" for line in lines[:_MOST_LINES] + more)])


def _cells(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} cells, first {names[0]}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(row: Row, name: str, form: str) -> str:
    return "-" if row.get(name) is None else format(row[name], form)
