"""kernels/bench/gpu.py while it runs: processes that die, a clock that counts calls, kernels that fail, the dry run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from llmquant.kernels.bench import gpu_ours, gpu_peers, gpu_session
from llmquant.kernels.bench.contender import Shape
from llmquant.kernels.bench.gpu_cases import BATCHES, FORMATS, LAYERS, PEERS, Plan
from llmquant.kernels.bench.gpu_compile import Compiling, Job, jobs, our_keys
from llmquant.kernels.bench.gpu_floor import Ceilings
from llmquant.kernels.bench.gpu_kernel import CUBLAS, OURS, Kernel, Peer
from llmquant.kernels.bench.gpu_peers_torch import Cublas
from llmquant.kernels.bench.gpu_session import Before, Session
from llmquant.kernels.bench.gpu_timing import Stopwatch
from llmquant.kernels.bench.gpu_watch import Watch
from llmquant.kernels.gpu import fallback

ROOT = Path(__file__).parents[3]
CARD = Ceilings(read_tbs=4.0, copy_tbs=4.3, bf16_tflops=788, int8_tops=None, launch_us=2)


WORKER = """
import json, sys, time
task = json.load(sys.stdin)
def tell(**message): print(json.dumps(message), flush=True)
row = {"name": "llmquant W8A8", "kernel": "llmquant", "variant": "", "layer": "a", "problem": None, "failed": None}
steps = ["llmquant W8A8 @ a M=1", "marlin W8A8 @ a M=2"]
for m in (1, 2):
    name = f"a M={m}"
    if name in task["done"]:
        continue
    tell(begin=steps[m - 1])
    if steps[m - 1] not in task["excluded"]:
        if m == 1:
            sys.exit(3)
        time.sleep(60)
    tell(rows=[row | {"m": m}], done=name)
"""


def watch(tmp_path: Path, code: str, **more: Any) -> tuple[dict[str, Any], Path]:
    path = tmp_path / "new" / "result.json"
    two = Plan({"a": Shape(8, 8)}, (1, 2), ("W8A8",), (), **more)
    run = Watch(two, {"gpu": None, "clocks": []}, path, [sys.executable, "-c", code], silence=3)
    return run.run(), path


def test_a_process_that_dies_or_hangs_is_replaced(tmp_path: Path) -> None:
    result, path = watch(tmp_path, WORKER)
    assert [crash["step"] for crash in result["crashes"]] == ["llmquant W8A8 @ a M=1", "marlin W8A8 @ a M=2"]
    assert [crash["reason"] for crash in result["crashes"]] == ["exit code 3", "it hung"]
    assert [row["m"] for row in result["rows"]] == [1, 2]
    assert result["complete"]
    assert result["failures"] == ["llmquant W8A8 @ a M=1: exit code 3"], "a peer that hangs is no failure of ours"
    assert json.loads(path.read_text()) == result
    assert list(path.parent.iterdir()) == [path], "nothing half written is left"


def test_the_time_is_kept_and_what_is_missing_is_listed(tmp_path: Path) -> None:
    began = time.time()
    code = "import json, sys, time; json.load(sys.stdin); print(json.dumps({'begin': 'ceilings'}), flush=True)\n"
    result, _ = watch(tmp_path, code + "time.sleep(60)", budget=-13.0)
    assert time.time() - began < 10
    assert result["left_out"] == ["a M=1", "a M=2"]
    assert not result["complete"]
    assert result["crashes"] == [{"step": "ceilings", "reason": "the time is over"}]


def test_nothing_that_starts_is_a_failure(tmp_path: Path) -> None:
    result, _ = watch(tmp_path, "raise SystemExit(1)")
    assert result["failures"] == ["start of the measuring process: exit code 1"]


# --- one measuring process, with a clock that counts calls -----------------------------------------------------------


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
    monkeypatch.setattr("llmquant.kernels.bench.gpu_timing._FLUSH_BYTES", 64)
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
        assert stopwatch.chains([chain, other, chain], quick=True) == [[7] * 5, [20] * 5, [7] * 5]
        log.clear()
        assert stopwatch.cold(calls) == [7] * 7
        assert log == [0, 1, 2, 0, 1, 2, 0]
        assert len(stopwatch.eager(calls)) == 3


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


def test_stopwatch_ends_a_capture_that_fails(stopwatch: Stopwatch) -> None:
    def call() -> None:
        if FakeGraph.capturing:
            raise ValueError("not while capturing")

    with pytest.raises(ValueError, match="not while"):
        stopwatch.graph([call], 1.0)
    assert FakeGraph.capturing is None


class Timed(Kernel):
    """A product in plain torch that takes as many microseconds as it says, and is spoilt as it says."""

    def __init__(self, owner: str, form: str, us: float, spoil: Callable[[Tensor], Tensor] = lambda out: out) -> None:
        super().__init__(owner, form)
        self.us, self.spoil = us, spoil

    def prepare(self, weight: Any) -> Tensor:
        return Cublas().prepare(weight).float()

    def call(self, x: Tensor, prepared: Tensor) -> Tensor:
        FakeEvent.now += self.us
        return self.spoil((x.float() @ prepared.T).to(x.dtype))


def unwritten(out: Tensor) -> Tensor:
    out[-1, -1] = torch.nan
    return out


def unsupported(out: Tensor) -> Tensor:
    raise ValueError("unsupported\nand more lines")


def run_session(
    stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch, ours: Sequence[Kernel], **more: Any
) -> list[dict]:
    peers = [
        Peer("vllm", (Timed("marlin", "W4A16-g128", 8), Timed("machete", "W4A16-g128", 1, spoil=unsupported))),
        Peer("gemlite", (Timed("gemlite", "W4A16-g128", 2, spoil=lambda out: -out),)),
        Peer("humming", absent="not installed"),
    ]
    monkeypatch.setattr(gpu_peers, "found", lambda plan: peers)
    monkeypatch.setattr(gpu_ours, "kernels", lambda plan, shape, m: ours)
    monkeypatch.setattr(gpu_session, "Cublas", lambda: Timed(CUBLAS, "bf16", 20))
    monkeypatch.setattr(gpu_session, "measured", lambda watch: CARD)
    monkeypatch.setattr("llmquant.kernels.bench.gpu_facts.facts", lambda: {"name": "fake"})
    small = Plan({"a": Shape(64, 256)}, (2,), ("W4A16-g128",), ("vllm", "gemlite", "humming"), sweep="none", **more)
    told: list[dict] = []
    before = Before(excluded=frozenset({"llmquant W8A16 @ a M=2 with peers"}))
    Session(small, told.append, time.time() + small.budget, before, stopwatch).run()
    return told


def test_a_session_goes_on_after_kernels_that_fail(stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [Timed(OURS, "W4A16-g128", 5), Timed(OURS, "W8A16", 6), Timed(OURS, "W8A8", 1, spoil=unwritten)]
    told = run_session(stopwatch, monkeypatch, ours)
    assert [message["done"] for message in told if "done" in message] == ["a M=2", "a M=2 with peers"]
    assert len([message for message in told if "ceilings" in message]) == 2
    alone, beside = ({row["name"]: row for row in message["rows"]} for message in told if "rows" in message)
    assert set(alone) == {"cublas bf16", "llmquant W4A16-g128", "llmquant W8A16", "llmquant W8A8"}
    assert alone["llmquant W4A16-g128"]["x_cublas"] == 4
    assert "cold_us" not in alone["llmquant W4A16-g128"], "measured once, beside the peers"
    ours_beside = beside["llmquant W4A16-g128"]
    assert (ours_beside["us"], ours_beside["cold_us"], ours_beside["best_peer"]) == (5, 5, "marlin W4A16-g128")
    assert ours_beside["x_best_peer"] == 8 / 5
    assert ours_beside["eager_us"] > 0
    assert beside["machete W4A16-g128"]["failed"] == "ValueError: unsupported"
    assert "more than" in beside["gemlite W4A16-g128"]["problem"]
    assert beside["llmquant W8A16"]["failed"] == "it ended or hung the measuring process"
    assert "not every element" in beside["llmquant W8A8"]["problem"]
    assert "us" not in beside["llmquant W8A8"], "what is wrong is not timed"
    assert {"gpu": {"name": "fake"}} in told


def test_a_session_without_time_measures_nothing(stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    told = run_session(stopwatch, monkeypatch, [Timed(OURS, "W4A16-g128", 5)], budget=3.0)
    assert not any("rows" in message for message in told)


def test_jobs_come_in_the_order_of_need(device: str) -> None:
    peer = Timed("humming", "W4A16-g128", 1)
    peer.compiles = "layer"
    whole = Timed("marlin", "W4A16-g128", 1)
    whole.compiles = "kernel"
    small = Plan({"a": Shape(64, 256), "b": Shape(128, 256)}, (1, 200), ("W4A16-g128",), ("vllm",))
    keys = [job.key for job in jobs(small, [Peer("vllm", (peer, whole, Timed("tinygemm", "W4A16-g128", 1)))])]
    assert keys[0] == "sweep"
    assert keys[-3:] == ["humming W4A16-g128 a", "marlin W4A16-g128", "humming W4A16-g128 b"]
    ours = [key for key in keys[:-3] if key != "sweep"]
    assert len(set(ours)) == len(ours)
    assert set(ours) == {key for m in (1, 200) for shape in small.layers.values() for key in our_keys(small, shape, m)}
    assert ours[0] in our_keys(small, Shape(64, 256), 1)


def test_compiling_tells_what_is_missing_and_stops() -> None:
    said: list[str] = []
    compiling = Compiling([Job("a", time.sleep, (0,)), Job("b", time.sleep, (60,)), Job("c", print, ())], processes=1)
    began = time.time()
    compiling.wait(["a", "unknown"], began + 30, said.append)
    assert compiling.unfinished(["a"]) == []
    compiling.wait(["b"], time.time() + 0.1, said.append)
    assert compiling.unfinished() == ["b", "c"]
    assert said[-1] == "compiling: 2 to go"
    compiling.close()
    assert time.time() - began < 40


@pytest.mark.parametrize("formats", [["W4A16-g128"], pytest.param(list(FORMATS), marks=pytest.mark.slow)])
def test_dry_run(tmp_path: Path, formats: list[str]) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'llmquant[gpu]'")
    path = tmp_path / "dry.json"
    command = [sys.executable, str(ROOT / "kernels/bench/gpu.py"), "--dry-run", "--json", str(path)]
    command += ["--formats", *formats]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert result["dry_run"]
    assert result["complete"]
    assert result["failures"] == []
    assert [case["problems"] for case in result["sweep"]] == [[]] * len(formats)
    assert len(result["built"]) == len(LAYERS) * len(BATCHES) * len(formats)
    assert {row["kernel"] for row in result["rows"]} == {OURS, CUBLAS}
    assert all(row["error"] < 1e-2 and "us" not in row for row in result["rows"])
    assert set(result["peers"]) == set(PEERS)
    assert {"date", "commit", "machine", "versions", "plan"} <= set(result)
    assert "| dry | not measured | not measured |" in done.stdout
