"""The results as markdown: a summary against the best peer, and every time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]


def markdown(result: dict[str, Any]) -> str:
    """All tables of a result."""
    parts = [_heading(result), summary(result["rows"]), details(result["rows"])]
    if result.get("oversubscribed"):
        parts.append(oversubscribed(result["oversubscribed"]))
    return "\n\n".join(parts) + "\n"


def summary(rows: list[Row]) -> str:
    """Ours against the best peer of about as many bits, against torch's fp32 and against the memory."""
    lines = [
        "| T | shape | M | kernel | us | STREAM | x fp32 | best peer | x best peer | error |",
        "|--:|---|--:|---|--:|--:|--:|---|--:|--:|",
    ]
    for case, group in _cases(rows):
        for row in group:
            if row["kernel"] != "llmquant":
                continue
            peer = best_peer(row, group)
            against = f"{_name(peer)} | {peer['us'] / row['us']:.2f}" if peer else "- | -"
            lines.append(
                f"| {case['threads']} | {case['n']}x{case['k']} | {case['m']} | {row['scheme']} {row['mode']} "
                f"| {row['us']:.0f} | {row['stream_share']:.2f} | {row['ratio_fp32']:.2f} | {against} "
                f"| {row['error']:.1e} |"
            )
    return "\n".join(lines)


def best_peer(row: Row, group: list[Row]) -> Row | None:
    """The fastest kernel of others that is quantized to about as many bits, in the same case."""
    peers = [
        other for other in group if other["kernel"] != "llmquant" and (row["bits"] < 6) == (other["bits"] < 6)
        and other["bits"] < 12
    ]  # fmt: skip
    return min(peers, key=lambda other: other["us"], default=None)


def details(rows: list[Row]) -> str:
    """Per thread count and shape: kernels down, M across; us, and times torch's fp32 in brackets."""
    tables = []
    places = list(dict.fromkeys((row["threads"], row["n"], row["k"]) for row in rows))
    for threads, n, k in places:
        here = [row for row in rows if (row["threads"], row["n"], row["k"]) == (threads, n, k)]
        batches = list(dict.fromkeys(row["m"] for row in here))
        times = {(_name(row), row["m"]): f"{row['us']:.0f} ({row['ratio_fp32']:.2f})" for row in here}
        lines = [
            f"{n}x{k}, {threads} thread{'s' * (threads > 1)}:\n",
            "| kernel | bits | " + " | ".join(f"M={batch}" for batch in batches) + " |",
            "|---|--:|" + "--:|" * len(batches),
        ]
        for name, bits in dict.fromkeys((_name(row), row["bits"]) for row in here):
            cells = " | ".join(times.get((name, batch), "-") for batch in batches)
            lines.append(f"| {name} | {bits:g} | {cells} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def oversubscribed(rows: list[Row]) -> str:
    """With other processes busy: several threads against one."""
    lines = [
        "| beside busy processes | shape | M | us, 1 thread | us, more | more / 1, median | more / 1, mean |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {_name(row)} | {row['n']}x{row['k']} | {row['m']} | {row['us_one']:.0f} | {row['us']:.0f} "
        f"| {row['ratio']:.2f} | {row['ratio_mean']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _heading(result: dict[str, Any]) -> str:
    machine = result["machine"]
    speeds = ", ".join(f"{speed:.1f} GB/s with {threads}" for threads, speed in result["stream_gbs"].items())
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['isa']}; STREAM read {speeds} thread(s)."


def _cases(rows: list[Row]) -> Iterator[tuple[Row, list[Row]]]:
    keys = ("threads", "n", "k", "m")
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    for case, group in groups.items():
        yield dict(zip(keys, case, strict=True)), group


def _name(row: Row) -> str:
    words = [row["kernel"], row["scheme"]]
    return " ".join(words if row["mode"] == row["scheme"] else [*words, row["mode"]])
