"""Loaded models and other programs, timed side by side."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from llmquant.api import quantize
from llmquant.eval.speed import bench, throughput
from llmquant.eval.speed.bench import contenders_of
from llmquant.eval.speed.throughput import Cell, ThroughputOptions, Timing
from llmquant.hf.load import load
from llmquant.nn.accuracy import set_accuracy
from llmquant.nn.storage import PackedStorage
from tests.engine.conftest import byte_tokenizer, tiny_llama

QUICK = ThroughputOptions(contexts=[8], decode_tokens=2, warmup=0, min_rounds=2, seconds=0.0)


def test_another_program_takes_its_turns_in_every_cell(baseline) -> None:
    asked: list[Cell] = []
    peer = bench.Peer("other", 1000, lambda cell: asked.append(cell) or Timing(8.0, 4.0))
    options = replace(QUICK, batches=[1, 3], warmup=1)
    found = bench.bench(contenders_of("fp32", baseline, ["exact"]), options, peers=[peer])
    assert found.cells == (Cell(1, 8), Cell(3, 8))
    mine, other = found.rows
    assert (other.name, other.parameter_bytes, other.kernels, other.dense) == ("other", 1000, {}, False)
    assert all(timed.decode == (4.0,) and timed.cache_bytes is None for timed in other.cells)
    assert asked == [*found.cells, *found.cells]  # once to measure memory, once in the only round
    one, three = (timed.cache_bytes for timed in mine.cells)
    assert three == 3 * (one or 0) > 0
    assert mine.dense
    assert 0 <= (found.others or 0) <= 1


def test_memory_is_measured_in_each_cell_by_itself(baseline, monkeypatch) -> None:
    rises = iter([10, 20, 30, 40])
    monkeypatch.setattr(bench, "measure_memory", lambda model, work: (work(), (next(rises), "so"))[1])
    contenders = [bench.Contender(name, baseline) for name in "AB"]
    found = bench.bench(contenders, replace(QUICK, batches=[1, 2], warmup=2))
    assert [[timed.peak_bytes for timed in row.cells] for row in found.rows] == [[10, 30], [20, 40]]
    assert found.memory_note == "so"
    assert bench.bench(contenders, QUICK).rows[0].cells[0].peak_bytes is None


def test_contenders_alternate_and_read_the_same_tokens(baseline) -> None:
    seen: list[tuple[str, torch.Tensor]] = []
    models = [copy.deepcopy(baseline) for _ in "AB"]
    for name, model in zip("AB", models, strict=True):
        model.register_forward_pre_hook(
            lambda _, __, kwargs, name=name: seen.append((name, kwargs["input_ids"])), with_kwargs=True
        )
    options = replace(QUICK, min_rounds=2, seconds=60.0)
    contenders = [bench.Contender(name, model) for name, model in zip("AB", models, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "_MAX_ROUNDS", 2)
        found = bench.bench(contenders, options)
    order = "".join(name for name, _ in seen)
    assert order == "AABB" + "AAABBB" + "BBBAAA"  # two tokens for what a cache takes, then a prefill and two steps
    prompts = [ids for _, ids in seen if ids.shape == (1, 8)]
    assert all(torch.equal(ids, prompts[0]) for ids in prompts)
    assert len(found.rows[0].cells[0].decode) == 2


def test_nothing_fits(baseline) -> None:
    found = bench.bench([bench.Contender("x", baseline)], replace(QUICK, contexts=[64]))
    assert (found.cells, found.rows[0].cells) == ((), ())
    assert "the model's context is 64" in found.left_out[0]


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
    report = bench.bench(found, QUICK)
    assert [list(row.kernels) for row in report.rows] == [["kernel, exact"], ["kernel, fast"]]
    assert _mode(packed) == "fast"
    monkeypatch.setattr(bench, "kernels_used", lambda _: {"reference": 1})
    assert [each.accuracy for each in contenders_of("x", packed, ["exact", "fast"])] == [None]
    assert [each.accuracy for each in contenders_of("x", tiny_llama(), ["exact", "fast"])] == [None]
