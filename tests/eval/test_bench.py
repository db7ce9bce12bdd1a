"""Loaded models and other programs, timed side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from llmquant.api import quantize
from llmquant.eval import bench
from llmquant.eval.bench import contenders_of
from llmquant.eval.throughput import ThroughputOptions, Timing
from llmquant.hf.load import load
from llmquant.nn.accuracy import set_accuracy
from llmquant.nn.storage import PackedStorage
from tests.engine.conftest import byte_tokenizer, tiny_llama

QUICK = ThroughputOptions(prompt_tokens=8, decode_tokens=2, warmup=0, min_rounds=2, seconds=0.0)


def test_another_program_takes_its_turns(baseline) -> None:
    peer = bench.Peer("other", 1000, lambda: Timing(8.0, 4.0))
    report = bench.bench("x", contenders_of("fp32", baseline, ["exact"]), QUICK, peers=[peer])
    mine, other = report.rows
    assert (other.name, other.parameter_bytes, other.kernels, other.decode.median) == ("other", 1000, {}, 4.0)
    assert other.decode_speedup.median == pytest.approx(4.0 / mine.decode.median, rel=0.5)
    assert mine.decode_speedup.median == 1.0


def _mode(model: PreTrainedModel) -> str:
    """What the layers were told, whether their kernels can do it on this machine or not."""
    (exact,) = {module.exact for module in model.modules() if isinstance(module, PackedStorage)}
    return "exact" if exact else "fast"


def test_modes_are_rows_where_they_differ_and_the_model_keeps_its_own(tmp_path: Path, monkeypatch) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    packed = load(quantize(tmp_path / "model", "int4-g32", tmp_path / "out").folder)
    set_accuracy(packed, "fast")
    monkeypatch.setattr(bench, "kernels_used", lambda model: {f"kernel, {_mode(model)}": 1})
    found = contenders_of("x", packed, ["exact", "fast"])
    assert [each.accuracy for each in found] == ["exact", "fast"]
    report = bench.bench("x", found, QUICK)
    assert [list(row.kernels) for row in report.rows] == [["kernel, exact"], ["kernel, fast"]]
    assert _mode(packed) == "fast"
    monkeypatch.setattr(bench, "kernels_used", lambda _: {"reference": 1})
    assert [each.accuracy for each in contenders_of("x", packed, ["exact", "fast"])] == [None]
    assert [each.accuracy for each in contenders_of("x", tiny_llama(), ["exact", "fast"])] == [None]
