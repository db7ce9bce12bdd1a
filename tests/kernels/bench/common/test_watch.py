"""Measuring processes that die or hang."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

from llmquant.kernels.bench.common.plan import CUDA, default_plan
from llmquant.kernels.bench.common.watch import Watch
from llmquant.kernels.bench.common.weights import Shape

WORKER = """
import json, sys, time
task = json.load(sys.stdin)
def tell(**message): print(json.dumps(message), flush=True)
row = {"name": "llmquant w8a8", "kernel": "llmquant", "problem": None, "failed": None, "n": 8, "k": 8}
steps = ["llmquant w8a8 @ 8x8 M=1", "marlin w8a8 @ 8x8 M=2"]
for m in (1, 2):
    name = f"8x8 M={m}"
    if name in task["done"]:
        continue
    tell(begin=steps[m - 1])
    if steps[m - 1] not in task["excluded"]:
        if m == 1:
            sys.exit(3)
        time.sleep(60)
    tell(rows=[row | {"m": m}], done=name)
"""


def watch(code: str, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    two = replace(default_plan(CUDA), shapes=(Shape(8, 8),), batches=(1, 2), **more)
    written: list[dict[str, Any]] = []
    return Watch(two, written.append, [sys.executable, "-c", code], silence=3).run(), written


def test_a_process_that_dies_or_hangs_is_replaced() -> None:
    result, written = watch(WORKER)
    assert [crash["step"] for crash in result["crashes"]] == ["llmquant w8a8 @ 8x8 M=1", "marlin w8a8 @ 8x8 M=2"]
    assert [crash["reason"] for crash in result["crashes"]] == ["exit code 3", "it hung"]
    assert [row["m"] for row in result["rows"]] == [1, 2]
    assert result["left_out"] == []
    assert result["failures"] == ["llmquant w8a8 @ 8x8 M=1: exit code 3"], "a peer that hangs is no failure of ours"
    assert len(written) == 3, "after each cell, and at the end"


def test_the_time_is_kept_and_what_is_missing_is_listed() -> None:
    began = time.time()
    code = "import json, sys, time; json.load(sys.stdin); print(json.dumps({'begin': 'x'}), flush=True)\n"
    result, _ = watch(code + "time.sleep(60)", budget=-13.0)
    assert time.time() - began < 10
    assert result["left_out"] == ["8x8 M=1", "8x8 M=2"]
    assert result["crashes"] == [{"step": "x", "reason": "the time is over"}]


def test_nothing_that_starts_is_a_failure() -> None:
    result, _ = watch("raise SystemExit(1)")
    assert result["failures"] == ["start of the measuring process: exit code 1"]
