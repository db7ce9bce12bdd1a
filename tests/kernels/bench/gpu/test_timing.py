"""The stopwatch with a clock that counts calls. No speed."""

from __future__ import annotations

import pytest

from llmquant.kernels.bench.gpu.timing import Stopwatch
from llmquant.kernels.gpu import fallback
from tests.kernels.bench.gpu.conftest import FakeEvent, FakeGraph, ticking, unable


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


def test_stopwatch_ends_a_capture_that_fails(stopwatch: Stopwatch) -> None:
    with pytest.raises(ValueError, match="not while"):
        stopwatch.graph([unable], 1.0)
    assert FakeGraph.capturing is None
