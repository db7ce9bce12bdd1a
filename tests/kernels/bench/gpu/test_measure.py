"""Everybody on a GPU that counts calls, and the dry run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmquant.kernels.bench.common.contender import DENSE, OURS, Contender
from llmquant.kernels.bench.common.plan import CUDA, default_plan
from llmquant.kernels.bench.common.rows import Sample
from llmquant.kernels.bench.gpu.measure import GpuBench
from llmquant.kernels.bench.gpu.timing import Stopwatch
from tests.kernels.bench.gpu.conftest import ticking, unable


def test_a_kernel_that_cannot_be_captured_costs_no_other(stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmquant.kernels.bench.gpu.measure.Stopwatch", lambda seconds: stopwatch)
    monkeypatch.setattr("llmquant.kernels.bench.gpu.measure._STREAM_BYTES", 64)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    place = GpuBench(replace(default_plan(CUDA), peers=("humming", "marlin")))
    assert set(place.absent) == {"humming", "marlin"}
    assert "--vllm-library" in place.absent["marlin"]
    one = Contender("x", "x", "x", 1, lambda rows: [])
    stream, found = place.times([(one, [ticking(5)]), (one, [unable]), (one, [ticking(9)])], 1)
    assert [each.us[0] if isinstance(each, Sample) else each for each in found] == [
        5, "ValueError: not while capturing", 9,
    ]  # fmt: skip
    assert isinstance(found[0], Sample)
    assert found[0].more["eager_us"] > 0
    assert stream.nbytes == 128
    _, (many,) = place.times([(one, [ticking(5)])], 4096)
    assert isinstance(many, Sample)
    assert many.more == {}


@pytest.mark.slow  # the quick one is a part of benchmarks/card.py --dry-run
def test_dry_run_of_every_scheme(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'llmquant[gpu]'")
    path = tmp_path / "dry.json"
    command = [sys.executable, "-m", "llmquant.kernels.bench", "--device", "dry", "--json", str(path)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = json.loads(path.read_text())["runs"]
    assert (run["left_out"], run["failures"], run["crashes"], run["fallbacks"]) == ([], [], [], {})
    assert {row["kernel"] for row in run["rows"]} == {OURS, DENSE}
    assert len(run["rows"]) == 2 * 9
    assert all(row["error"] < 1e-2 and "us" not in row for row in run["rows"])
