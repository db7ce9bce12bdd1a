"""A result as markdown: our kernels against cuBLAS and the best peer, in short and at length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmquant.kernels.bench.gpu_kernel import OURS
from llmquant.kernels.bench.gpu_ours import config_name
from llmquant.kernels.gpu.choose.config import Config

Row = dict[str, Any]

NOT_MEASURED = "not measured"
_MOST_LINES = 25


def markdown(result: dict[str, Any]) -> str:
    """Everything."""
    return "\n\n".join([*_head(result), *_shorts(result), *_details(result), *_everybody(result)]) + "\n"


def short(result: dict[str, Any]) -> str:
    """What fits on a screen: per format, layers down and rows across; what went wrong comes last."""
    return "\n\n".join([*_shorts(result), *_head(result)]) + "\n"


def _head(result: dict[str, Any]) -> Iterator[str]:
    gpu = result.get("gpu")
    what = gpu["name"] if gpu else f"{result['machine']['cpu']}, without a GPU"
    yield f"{what}; commit {result['commit']}; {result['seconds']:.0f} s{'; dry run' * result['dry_run']}"
    for number, found in enumerate(result["ceilings"]):
        int8 = f"{found['int8_tops']:.0f}" if found["int8_tops"] else NOT_MEASURED
        yield (
            f"at the {'end' if number else 'start'}: read {found['read_tbs']:.2f}, copy {found['copy_tbs']:.2f} TB/s, "
            f"bf16 {found['bf16_tflops']:.0f} TFLOP/s, int8 {int8} TOP/s, {found['launch_us']:.2f} us a launch"
        )
    sweep = result["sweep"]
    bad = sum(bool(case["problems"]) for case in sweep)
    yield f"correctness: {len(sweep)} cases, {bad} with problems, {len(result['failures'])} failures in all"
    if "built" in result:
        yield f"{len(result['built'])} cases built"
    yield from _list("FAILED", result["failures"])
    yield from _list("ended a process", [f"{crash['step']}: {crash['reason']}" for crash in result["crashes"]])
    yield from _list("absent", [f"{name}: {why}" for name, why in result["peers"].items() if isinstance(why, str)])
    yield from _list("not timed", _untimed(result["rows"]))
    left = result["left_out"]
    yield from _list("no time left for", [f"{len(left)} cells, first {left[0]}"] if left else [])


def _list(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
        yield "\n".join([f"{title}:", *(f"- {line}" for line in lines[:_MOST_LINES] + more)])


def _untimed(rows: list[Row]) -> list[str]:
    """Kernels with a reason, once for each reason, with the first place."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if reason := row["problem"] or row["failed"]:
            found.setdefault((row["name"], reason), []).append(f"{row['layer']} M={row['m']}")
    return [f"{name}: {reason} ({len(at)} cells, first {at[0]})" for (name, reason), at in found.items()]


def _shorts(result: dict[str, Any]) -> Iterator[str]:
    ours = [row for row in result["rows"] if row["kernel"] == OURS and not row["variant"]]
    batches = sorted({row["m"] for row in ours})
    for form in dict.fromkeys(row["format"] for row in ours):
        here = {(row["layer"], row["m"]): row for row in ours if row["format"] == form}
        lines = [
            f"{form}: times cuBLAS / times the best peer",
            "",
            "| layer | " + " | ".join(f"M={m}" for m in batches) + " |",
            "|---|" + "--:|" * len(batches),
        ]
        for layer in dict.fromkeys(layer for layer, _ in here):
            lines.append(f"| {layer} | " + " | ".join(_ratios(here.get((layer, m))) for m in batches) + " |")
        yield "\n".join(lines)


def _ratios(row: Row | None) -> str:
    if row is None:
        return "-"
    if "us" not in row:
        return NOT_MEASURED
    return "/".join(f"{row[name]:.2f}" for name in ("x_cublas", "x_best_peer") if name in row)


def _details(result: dict[str, Any]) -> Iterator[str]:
    """Every number of ours, a table per format."""
    ours = [row for row in result["rows"] if row["kernel"] == OURS]
    for form in dict.fromkeys(row["format"] for row in ours):
        lines = [
            f"{form} in full; us: medians, with quartiles; the limit is that of `x cuBLAS`",
            "",
            "| layer | M | kernel | us | TB/s | floor | x cuBLAS | limit | best peer | x | cold | eager | error |",
            "|---|--:|---|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|",
        ]
        lines += [_detail(row) for row in ours if row["format"] == form]
        yield "\n".join(lines)


def _detail(row: Row) -> str:
    cells = [row["layer"], str(row["m"]), row["variant"] or _config(row)]
    if "us" in row:
        cells.append(f"{row['us']:.2f} ({row['us_q25']:.2f}-{row['us_q75']:.2f})")
    else:
        cells.append(row["problem"] or row["failed"] or NOT_MEASURED)
    for name, digits in (("tbs", 2), ("floor_share", 2), ("x_cublas", 2), ("limit_x_cublas", 2)):
        cells.append(_number(row, name, digits))
    cells.append(row.get("best_peer", "-"))
    for name, digits in (("x_best_peer", 2), ("cold_us", 1), ("eager_us", 1)):
        cells.append(_number(row, name, digits))
    cells.append("-" if row["error"] is None else f"{row['error']:.1e}")
    return "| " + " | ".join(cells) + " |"


def _config(row: Row) -> str:
    config = row.get("config")
    if not isinstance(config, dict):
        return config or "-"
    return config_name(Config(**config))


def _number(row: Row, name: str, digits: int) -> str:
    return f"{row[name]:.{digits}f}" if name in row else "-"


def _everybody(result: dict[str, Any]) -> Iterator[str]:
    """Microseconds of every kernel: per layer, kernels down and rows across."""
    rows = result["rows"]
    for layer in dict.fromkeys(row["layer"] for row in rows):
        here = [row for row in rows if row["layer"] == layer]
        batches = sorted({row["m"] for row in here})
        times = {(row["name"], row["m"]): _number(row, "us", 2) for row in here}
        lines = [
            f"{layer} ({here[0]['n']}x{here[0]['k']}), us",
            "",
            "| kernel | bits | error | " + " | ".join(f"M={m}" for m in batches) + " |",
            "|---|--:|--:|" + "--:|" * len(batches),
        ]
        for name in dict.fromkeys(row["name"] for row in here):
            some = [row for row in here if row["name"] == name]
            error = max((row["error"] for row in some if row["error"] is not None), default=None)
            head = f"| {name} | {some[0]['bits']:g} | {'-' if error is None else f'{error:.1e}'} | "
            lines.append(head + " | ".join(times.get((name, m), "-") for m in batches) + " |")
        yield "\n".join(lines)
