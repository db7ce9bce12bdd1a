"""Models take turns; ratios are those of a round; the clock waits for the device."""

from __future__ import annotations

import copy

import pytest
import torch

from llmquant.errors import DataError
from llmquant.eval import throughput
from llmquant.eval.throughput import ThroughputOptions, Timing, measure_throughput


def test_throughput_alternates_the_models(baseline, perturbed, monkeypatch) -> None:
    order: list[str] = []
    models = [copy.deepcopy(model) for model in (baseline, perturbed)]
    hooks = [
        model.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for model, name in zip(models, "AB", strict=True)
    ]
    monkeypatch.setattr(throughput, "dense_versions", lambda model: ({"float32": model}, None))
    options = ThroughputOptions(prompt_tokens=8, decode_tokens=2, warmup=0, min_rounds=4, seconds=2.0)
    found = measure_throughput(models[0], models[1], torch.arange(10), options)
    for hook in hooks:
        hook.remove()
    rounds = ["".join(order[i : i + 6]) for i in range(0, len(order), 6)]
    assert rounds[:4] == ["AAABBB", "BBBAAA", "AAABBB", "BBBAAA"]
    assert found.protocol.prefill_speedup.runs == len(rounds)
    with pytest.raises(DataError, match="needs 10 tokens"):
        measure_throughput(models[0], models[1], torch.arange(9), options)


def test_speed_is_against_the_own_dtype_and_the_fastest(baseline, perturbed, monkeypatch) -> None:
    """Fixed times for each model: the ratios and names follow from them."""
    seconds = {"float32": (1.0, 8.0), "bfloat16": (2.0, 4.0), "quantized": (0.5, 2.0)}

    def time_once(model, ids, options) -> Timing:
        name = "quantized" if model is perturbed else str(model.dtype).removeprefix("torch.")
        return Timing(*(1 / each for each in seconds[name]))

    monkeypatch.setattr(throughput, "time_once", time_once)
    options = ThroughputOptions(prompt_tokens=8, decode_tokens=2, seconds=0.0)
    protocol = measure_throughput(baseline, perturbed, torch.arange(10), options).protocol
    assert [each.dtype for each in protocol.dense] == ["float32", "bfloat16"]
    assert (protocol.fastest_prefill, protocol.fastest_decode) == ("float32", "bfloat16")
    assert (protocol.prefill_speedup.median, protocol.decode_speedup.median) == (2.0, 4.0)
    assert (protocol.dense[1].prefill_speedup.median, protocol.dense[1].decode_speedup.median) == (4.0, 2.0)
    assert baseline.dtype == torch.float32


def test_a_dense_dtype_that_does_not_fit_is_named(baseline, monkeypatch) -> None:
    monkeypatch.setattr(throughput, "free_bytes", lambda _: 100)
    versions_of, note = throughput.dense_versions(baseline)
    assert list(versions_of) == ["float32"]
    assert "bfloat16" in (note or "")


def test_decode_uses_the_cache(baseline) -> None:
    seen: list[torch.Size] = []
    model = copy.deepcopy(baseline)
    model.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True)
    options = ThroughputOptions(prompt_tokens=8, decode_tokens=2, batch_size=3, warmup=0, min_rounds=1, seconds=0.0)
    measure_throughput(model, model, torch.arange(10), options)
    assert seen[:3] == [torch.Size([3, 8]), torch.Size([3, 1]), torch.Size([3, 1])]


@pytest.mark.parametrize("kind", ["cuda:1", "xpu:0", "mps"])
def test_the_clock_waits_for_the_device_of_the_model(kind: str, monkeypatch) -> None:
    events: list[object] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", events.append)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: events.append("clock") or 1.5)
    assert throughput.now(torch.device(kind)) == 1.5
    assert events == [torch.device(kind), "clock"]
    throughput.now(torch.device("cpu"))
    assert events[2:] == ["clock"]


def test_ratios_are_those_of_a_round() -> None:
    """A machine twice as slow in one round changes no ratio."""
    rounds = [[Timing(100, 10), Timing(200, 40)], [Timing(50, 5), Timing(100, 20)]]
    over = throughput.speedup(rounds, 1, 0)
    assert (over.prefill.median, over.decode.median, over.decode.runs) == (2, 4, 2)
    assert throughput.speed(rounds, 0).prefill.median == 75


@pytest.mark.parametrize(
    "options",
    [
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"seconds": -1.0},
        {"prompt_tokens": 0},
        {"decode_tokens": 0},
        {"batch_size": -1},
        {"warmup": -1},
        {"min_rounds": 0},
    ],
)
def test_a_speed_test_has_numbers_that_can_be(options: dict) -> None:
    with pytest.raises(DataError, match="the speed test cannot"):
        ThroughputOptions(**options)
