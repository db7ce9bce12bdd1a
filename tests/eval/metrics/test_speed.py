"""The baseline is timed in its own dtype and in those that may be faster, the quantized model beside them."""

from __future__ import annotations

import pytest
import torch

from llmquant.data.windows import make_windows
from llmquant.eval.metrics import speed
from llmquant.eval.pair import Facts, Subject, pairs
from llmquant.eval.speed import bench
from llmquant.eval.speed.throughput import ThroughputOptions, Timing
from llmquant.eval.statistics import Spread
from tests.eval.conftest import pair_of


@pytest.fixture
def pair(baseline, perturbed, tokenizer, text):
    return pair_of(baseline, perturbed, make_windows([text], tokenizer, source="x", length=40, context=64))


def test_speed_is_against_the_own_dtype_and_the_fastest(pair, perturbed, monkeypatch) -> None:
    """Fixed times for each model: the ratios and names follow from them."""
    seconds = {"float32": (1.0, 8.0), "bfloat16": (2.0, 4.0), "quantized": (0.5, 2.0)}

    def time_once(model, ids, context) -> Timing:
        name = "quantized" if model is perturbed else str(model.dtype).removeprefix("torch.")
        return Timing(1 / seconds[name][0], 1 / seconds[name][1])

    monkeypatch.setattr(bench, "time_once", time_once)
    section = speed.measure(pair, ThroughputOptions(contexts=[8, 63], decode_tokens=2, seconds=0.0))
    assert [row.name for row in section.rows] == ["float32", "bfloat16", "q"]
    assert [(each.against, each.ratio) for each in speed.comparisons(section, 0, "prefill")] == [
        ("float32, the checkpoint's, the fastest", "2.00x")
    ]
    assert [(each.against, each.ratio) for each in speed.comparisons(section, 0, "decode")] == [
        ("float32, the checkpoint's", "4.00x"), ("bfloat16, the fastest", "2.00x"),
    ]  # fmt: skip
    assert (section.ratio("prefill"), section.decode_ratio) == (Spread(2, None, None, 1), Spread(4, None, None, 1))
    assert section.ratio("decode", 1) is None
    assert len(section.left_out) == 1
    assert pair.baseline.dtype == torch.float32


def test_candidates_of_a_comparison_take_turns_with_one_baseline(pair, baseline, barely_perturbed, monkeypatch) -> None:
    seen: list[int] = []
    both = (pair.quantized, barely_perturbed)

    def time_once(model, ids, context) -> Timing:
        seen.append(both.index(model) if model in both else -1)
        return Timing(1.0, float(len(seen)))

    monkeypatch.setattr(bench, "time_once", time_once)
    facts = [
        Facts(subject=Subject(name=name, baseline_name="b"), windows=pair.windows, tokenizer=None) for name in "AB"
    ]
    options = ThroughputOptions(contexts=[8], decode_tokens=2, warmup=0, seconds=0.0)
    found = [speed.measure(each, options) for each in pairs(facts, baseline, both)]
    assert seen == [-1, -1, 0, 1]
    assert [[row.name for row in each.rows] for each in found] == [["float32", "bfloat16", name] for name in "AB"]
    assert [each.quantized.cells[0].decode for each in found] == [(3.0,), (4.0,)]


def test_a_dense_dtype_that_does_not_fit_is_named(baseline, monkeypatch) -> None:
    monkeypatch.setattr(speed, "free_bytes", lambda _: 100)
    versions_of, left_out = speed.dense_versions(baseline)
    assert list(versions_of) == ["float32"]
    assert left_out == ["the baseline in bfloat16: too little memory"]
