"""What is timed: a prefill and decode steps by batch and context; the clock waits for the device."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from llmquant.errors import DataError
from llmquant.eval.speed import throughput
from llmquant.eval.speed.throughput import Cell, ThroughputOptions, Timing, quiet, time_once, timed_rounds
from llmquant.progress import Progress


def test_runs_take_turns_until_the_time_is_over(monkeypatch) -> None:
    clock, order = [0.0], []
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock[0])

    def run(name: str) -> Timing:
        order.append(name)
        clock[0] += 1.0
        return Timing(1.0, 1.0)

    runs = [lambda name=name: run(name) for name in "AB"]
    assert len(timed_rounds(runs, ThroughputOptions(min_rounds=1, seconds=5.0), Progress())) == 3
    assert "".join(order) == "ABBAAB"
    assert len(timed_rounds(runs, ThroughputOptions(min_rounds=9, seconds=2.0), Progress())) == 3  # out of patience
    assert len(timed_rounds(runs, ThroughputOptions(min_rounds=3, seconds=0.0), Progress())) == 1


def test_decode_uses_the_cache(baseline) -> None:
    seen: list[torch.Size] = []
    model = copy.deepcopy(baseline)
    model.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True)
    with quiet([model]):
        timed = time_once(model, torch.arange(30).view(3, 10), 8)
    assert seen == [torch.Size([3, 8]), torch.Size([3, 1]), torch.Size([3, 1])]
    # keys and values, 2 layers, 3 sequences, 2 heads of 8, 10 tokens, 4 bytes
    assert timed.cache_bytes == 2 * 2 * 3 * 2 * 8 * 10 * 4
    assert throughput.cache_bytes(SimpleNamespace()) is None


def test_the_speed_is_that_of_all_sequences() -> None:
    timed = throughput.timing(torch.zeros(3, 10), 8, None, (1.0, 3.0, 4.0))
    assert (timed.prefill, timed.decode) == (3 * 8 / 2, 3 * 2 / 1)


@pytest.mark.parametrize("kind", ["cuda:1", "xpu:0", "mps"])
def test_the_clock_waits_for_the_device_of_the_model(kind: str, monkeypatch) -> None:
    events: list[object] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", events.append)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: events.append("clock") or 1.5)
    assert throughput.now(torch.device(kind)) == 1.5
    assert events == [torch.device(kind), "clock"]
    throughput.now(torch.device("cpu"))
    assert events[2:] == ["clock"]


def test_a_grid_has_each_cell_once() -> None:
    cells = ThroughputOptions(batches=[1, 4, 1], contexts=(8, 16)).cells
    assert cells == (Cell(1, 8), Cell(4, 8), Cell(1, 16), Cell(4, 16))
    assert str(cells[1]) == "batch 4, context 8"


@pytest.mark.parametrize(
    "options",
    [
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"seconds": -1.0},
        {"contexts": [128, 0]},
        {"contexts": []},
        {"decode_tokens": 0},
        {"batches": [-1]},
        {"warmup": -1},
        {"min_rounds": 0},
    ],
)
def test_a_speed_test_has_numbers_that_can_be(options: dict) -> None:
    with pytest.raises(DataError, match="the speed test cannot"):
        ThroughputOptions(**options)
