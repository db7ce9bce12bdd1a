"""kernels/bench/cpu: turns, peers, and a small run as a whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmquant.kernels.bench.common.contender import ONNXRUNTIME, OURS
from llmquant.kernels.bench.cpu import measure
from llmquant.kernels.bench.cpu.measure import Bursts
from llmquant.kernels.cpu import native

MICRO = ["--device", "cpu", "--quick", "--sizes", "64x128", "--m", "1", "3", "--threads", "1", "--seconds", "0.02"]


def test_everybody_runs_in_turn() -> None:
    order: list[str] = []
    bursts = [Bursts([lambda name=name: order.append(name)] * 2) for name in "ab"]
    measure.measure(bursts, threads=1, seconds=0)
    assert [len(each.times) for each in bursts] == [3, 3]
    assert "".join(order) == "aabb" + "bbaa" + "aabb", "each runs a warm-up and a timed call per round"


def test_another_pool_waits_until_the_last_one_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(measure.time, "sleep", slept.append)
    bursts = [Bursts([lambda: None]), Bursts([lambda: None], ONNXRUNTIME)]
    measure.measure(bursts, threads=2, seconds=0)
    assert len(slept) == 3, "the next round begins with the pool that ended the last one"
    measure.measure(bursts, threads=1, seconds=0)
    assert len(slept) == 3


def test_bursts_take_each_copy_in_turn() -> None:
    seen: list[int] = []
    bursts = Bursts([lambda i=i: seen.append(i) for i in range(3)])
    for _ in range(3):
        bursts.burst(0, lambda: 0)
    assert seen == [1, 2, 0, 1, 2, 0]


def test_an_exception_in_a_kernel_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        measure.measure([Bursts([lambda: 1 / 0])], threads=1, seconds=0)


@pytest.mark.skipif(native.library() is None, reason="no C++ kernels")
def test_a_small_run_writes_everything(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    command = [sys.executable, "-m", "llmquant.kernels.bench", *MICRO, "--rotate-mb", "0.02", "--json", str(path)]
    done = subprocess.run(
        [*command, "--schemes", "int4-g128", "int8", "int4-g8"], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 1, "one scheme cannot run, which is a failure"
    assert "int4-g8 exact at 64x128 M=1: ValueError: " in done.stdout
    result = json.loads(path.read_text())
    assert {"date", "commit", "versions", "seconds"} <= set(result)
    assert {"cpu", "isa", "cores", "threads", "load", "load_after"} <= set(result["machine"])
    (run,) = result["runs"]
    assert run["left_out"] == []
    rows = [row for row in run["rows"] if not row["failed"]]
    found = {(row["scheme"], row["mode"], row["m"]) for row in rows if row["kernel"] == OURS}
    assert found == {(s, mode, m) for s in ("int4-g128", "int8") for mode in ("fast", "exact") for m in (1, 3)}
    for row in rows:
        assert row["us"] > 0
        assert row["stream_share"] > 0
        if row["kernel"] == OURS:
            assert row["error"] < (1e-4 if row["mode"] == "exact" else 2e-2)
    assert [row["x_dense"] for row in rows if row["scheme"] == "fp32"] == [1, 1]
