"""kernels/bench/gpu: the stopwatch with a clock that counts calls, the peers' layouts, and the dry run. No speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmquant.kernels.bench.common.contender import DENSE, OURS, Contender
from llmquant.kernels.bench.common.plan import CUDA, default_plan
from llmquant.kernels.bench.common.rows import Sample
from llmquant.kernels.bench.gpu.measure import GpuBench
from llmquant.kernels.bench.gpu.timing import Stopwatch
from llmquant.kernels.bench.peers.marlin import marlin_scales, marlin_zeros, scalar_type
from llmquant.kernels.gpu import fallback


class FakeEvent:
    """Time is the number of calls so far."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: FakeEvent) -> float:
        return (other.at - self.at) / 1e3


class FakeGraph:
    """Remembers how many calls were captured."""

    capturing: FakeGraph | None = None

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        self.before = FakeEvent.now
        FakeGraph.capturing = self

    def capture_end(self) -> None:
        self.calls = FakeEvent.now - self.before
        FakeEvent.now = self.before
        FakeGraph.capturing = None

    def replay(self) -> None:
        FakeEvent.now += self.calls


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    @contextmanager
    def stream(which: Any) -> Iterator[None]:
        yield

    fake_stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    properties = SimpleNamespace(L2_cache_size=3000)
    for name, value in {
        "Stream": lambda: fake_stream, "stream": stream, "current_stream": lambda: fake_stream, "Event": FakeEvent,
        "CUDAGraph": FakeGraph, "graph_pool_handle": lambda: 0, "get_device_properties": lambda index: properties,
        "empty_cache": lambda: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr("llmquant.kernels.bench.gpu.timing._FLUSH_BYTES", 64)
    FakeEvent.now = 0.0
    return Stopwatch(1.0, device="cpu")


def ticking(us: float, log: list[Any] | None = None, name: Any = None) -> Callable[[], None]:
    def call() -> None:
        FakeEvent.now += us
        if log is not None:
            log.append(name)

    return call


def test_stopwatch_takes_copies_in_turn(stopwatch: Stopwatch) -> None:
    log: list[int] = []
    calls = [ticking(7, log, number) for number in range(3)]
    with stopwatch.running():
        assert stopwatch.once(calls[0]) == 7
        log.clear()
        chain = stopwatch.graph(calls, 7)
        assert log[:3] == [0, 1, 2], "each is called before the capture"
        assert log[3:9] == [0, 1, 2, 0, 1, 2]
        assert chain.calls == 144, "a millisecond, in whole rounds of the copies"
        other = stopwatch.graph([ticking(20)] * 2, 20)
        assert stopwatch.chains([chain, other, chain]) == [[7] * 21, [20] * 21, [7] * 21]
        assert stopwatch.eager(calls) > 0


def test_stopwatch_captures_again_what_lacked_something(stopwatch: Stopwatch) -> None:
    captures = 0

    def call() -> None:
        nonlocal captures
        FakeEvent.now += 1
        if FakeGraph.capturing and captures < 1:
            captures += 1
            fallback.note_fallback("test: no counters")

    fallback.forget_fallbacks()
    chain = stopwatch.graph([call] * 2, 600.0)
    assert chain.calls == 2
    assert fallback.fallbacks() == {"test: no counters": 1}
    fallback.forget_fallbacks()


def unable() -> None:
    if FakeGraph.capturing:
        raise ValueError("not while capturing")


def test_stopwatch_ends_a_capture_that_fails(stopwatch: Stopwatch) -> None:
    with pytest.raises(ValueError, match="not while"):
        stopwatch.graph([unable], 1.0)
    assert FakeGraph.capturing is None


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


def test_type_numbers_are_vllms() -> None:
    # uint4b8, uint8b128 and uint4 of vllm/scalar_type.py, 0.25.0
    assert [scalar_type(4, 8), scalar_type(8, 128), scalar_type(4, 0)] == [
        1125899907892224, 1125899923621888, 1125899906843648,
    ]  # fmt: skip


def test_marlin_order() -> None:
    grouped = marlin_scales(torch.arange(128).view(2, 64), grouped=True)
    assert grouped[0, :10].tolist() == [0, 8, 16, 24, 32, 40, 48, 56, 1, 9]
    assert marlin_scales(torch.arange(64).view(1, 64), grouped=False)[0, :9].tolist() == [0, 1, 8, 9, 16, 17, 24, 25, 2]
    zeros = torch.zeros(64, 3, dtype=torch.int8)
    zeros[16, 1] = 7  # third in Marlin's order, and so, interleaved, second in its word
    words = marlin_zeros(zeros)
    assert tuple(words.shape) == (3, 8)
    assert words[0, 0] == -0x77777778  # code 0 is stored as 8
    assert words[1, 0] ^ words[0, 0] == (8 ^ 15) << 4


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
