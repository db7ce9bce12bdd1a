"""A CUDA device whose clock counts calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmquant.kernels.bench.gpu.timing import Stopwatch


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


def unable() -> None:
    if FakeGraph.capturing:
        raise ValueError("not while capturing")
