"""What decode_gpu.py writes down: facts, sections that may fail one by one, the JSON file, and the tables.

A card is lent for minutes, so nothing that was measured may get lost: the file is replaced after each section, and a
section that fails is written down with its error while the others go on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import torch

from llmquant.eval.statistics import spread
from llmquant.kernels.bench import gpu_facts
from llmquant.kernels.gpu.fallback import fallbacks
from llmquant.machine import machine, versions

Row = dict[str, Any]
Result = TypeVar("Result")
_PACKAGES = ("llmquant", "torch", "triton", "transformers")


class Report:
    """The result of a run, on disk as far as it goes.

    Attributes:
        result: what is written.
    """

    def __init__(
        self, plan: dict[str, Any], device: torch.device, path: Path | None, seconds: float, commit: str | None = None
    ) -> None:
        """Begin.

        Args:
            plan: what is to be measured.
            device: where.
            path: of the JSON file.
            seconds: after which no section starts, and no round.
            commit: what is measured, where git does not know.
        """
        self._path, self._end = path, time.monotonic() + seconds
        self.result: dict[str, Any] = facts(device, commit)
        self.result |= {"plan": plan, "failed": [], "skipped": [], "fallbacks": {}, "finished": False}

    def left(self) -> float:
        """Seconds until the end."""
        return self._end - time.monotonic()

    def section(self, key: str, name: str, run: Callable[[], list[Row]], needs: float = 0.0) -> None:
        """Run a section, if there is time, and add its rows to `result[key]`.

        Args:
            key: of the rows.
            name: for people.
            run: gives the rows.
            needs: seconds that must be left, or the section is skipped.
        """
        self.result.setdefault(key, [])
        if self.left() < max(needs, 1.0):
            self.result["skipped"].append(f"{name}: {max(0.0, self.left()):.0f} s left")
            rows = None
        else:
            print(f"{name} ({self.left():.0f} s left)", file=sys.stderr, flush=True)
            rows = self.attempt(name, run)
        self.result[key] += rows or []
        self.save()

    def attempt(self, name: str, run: Callable[[], Result]) -> Result | None:
        """The result of a call; None if it failed, which is written down."""
        try:
            return run()
        except Exception:  # noqa: BLE001 - what follows is still worth its time
            self.result["failed"].append({"section": name, "error": traceback.format_exc()})
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            return None

    def save(self, finished: bool = False) -> None:
        """Replace the file."""
        self.result |= {"fallbacks": fallbacks(), "finished": finished}
        if finished and (clocks := self.result["machine"].get("clocks")):
            clocks.append(gpu_facts.clocks())
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_name(self._path.name + ".new")
        new.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")
        os.replace(new, self._path)

    def good(self) -> bool:
        """Whether nothing failed, and every check passed."""
        return not self.result["failed"] and all(row["ok"] for row in self.result.get("checks", ()))


def facts(device: torch.device, commit: str | None) -> dict[str, Any]:
    """Machine, versions, commit and date."""
    found: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or _git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"),
        "machine": machine(device),
        "versions": versions(_PACKAGES),
    }
    if device.type == "cuda":
        found["machine"] |= {"gpu": gpu_facts.facts(), "clocks": [gpu_facts.clocks()]}
    return found


def _git(*command: str) -> str | None:
    try:
        done = subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def timing(times: list[float] | None, tokens: int, dense: list[float] | None) -> Row:
    """Columns of a time that was measured in rounds.

    Args:
        times: seconds, one for each round; None if nothing was measured.
        tokens: that each of them took.
        dense: those of the dense model in the same rounds.
    """
    if times is None:
        return {"ms": None, "tokens_s": None, "ratio_dense": None}
    across = spread(times)
    row: Row = {
        "ms": {
            name: value if value is None else round(1e3 * value, 4)  # no quartiles of two rounds
            for name, value in zip(("median", "q25", "q75"), (across.median, across.q25, across.q75), strict=True)
        }
        | {"best": round(1e3 * min(times), 4), "rounds": across.runs},
        "tokens_s": round(tokens / across.median, 1),
        "ratio_dense": None,
    }
    if dense:
        row["ratio_dense"] = round(spread([base / time for base, time in zip(dense, times, strict=True)]).median, 3)
    return row


def show(result: dict[str, Any]) -> str:
    """The tables, as text."""
    lines = [f"{result['plan']['shape']} in {result['plan']['dtype']} on {result['machine']['device']}"]
    lines += [_model_line(row) for row in result.get("models", ())]
    lines += [_check_line(row) for row in result.get("checks", ())]
    lines += [f"decode {_speed_line(row)}" for row in result.get("decode", ())]
    lines += [f"prefill {_speed_line(row)}" for row in result.get("prefill", ())]
    lines += [line for row in result.get("profile", ()) for line in _profile_lines(row)]
    lines += [f"not as it should be, {count} times: {reason}" for reason, count in result["fallbacks"].items()]
    lines += [f"skipped: {name}" for name in result["skipped"]]
    lines += [f"FAILED: {each['section']}: {each['error'].strip().splitlines()[-1]}" for each in result["failed"]]
    return "\n".join(lines) + "\n"


def _model_line(row: Row) -> str:
    kernels = ", ".join(f"{name} x{count}" for name, count in row["kernels"].items()) or "torch"
    size = "size not measured" if row["weights_bytes"] is None else f"{row['weights_bytes'] / 1e9:6.2f} GB"
    return f"model {row['model']:16} {size}, built in {row['build_s']:.1f} s; {kernels}"


def _check_line(row: Row) -> str:
    rest = ", ".join(f"{k} {v:.3g}" for k, v in row.items() if isinstance(v, float))
    return f"check {row['model']:16} {row['check']:14} {'ok' if row['ok'] else 'WRONG'}  {rest}"


def _speed_line(row: Row) -> str:
    name = f"{row['model']} {row['accuracy'] or ''}".strip()
    head = f"{name:22} {row['way']:9} batch {row['batch']:3} context {row['context']:5}"
    if row["ms"] is None:
        return f"{head}  not measured"
    ratio = "" if row["ratio_dense"] is None else f"  {row['ratio_dense']:.2f}x dense"
    memory = "" if row["memory_bytes"] is None else f"  {row['memory_bytes'] / 1e9:.1f} GB"
    ms = row["ms"]
    quartiles = f"({ms['q25']:.3f}-{ms['q75']:.3f}) " if ms["q25"] is not None else ""
    return f"{head}  {ms['median']:8.3f} ms {quartiles} {row['tokens_s']:9.1f} tok/s{ratio}{memory}"


def _profile_lines(row: Row) -> list[str]:
    name = f"{row['model']} {row['accuracy'] or ''}".strip()
    head = f"time in {name:22} {row['what']:18}"
    if row["device_us"] is None:
        return [f"{head} not measured"]
    share = row.get("share_outside_our_kernels")
    outside = "" if share is None else f", {100 * share:.0f} % of {row['step_us']:.0f} us outside our kernels"
    first = f"{head} {row['our_kernels_us']:.0f} us in {row['our_launches']:.0f} launches of ours{outside}"
    return [
        first,
        *(f"    {each['us']:8.1f} us {each['launches']:6.1f}x {each['kernel'][:80]}" for each in row["others"]),
    ]
