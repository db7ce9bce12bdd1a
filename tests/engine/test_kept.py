"""Finished blocks are kept in a folder, found again whole, and never half."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from llmquant.algorithms.rounding.base import LayerResult
from llmquant.data.calibration import load_calibration
from llmquant.engine import drive as drive_module
from llmquant.engine.in_memory import quantize_loaded
from llmquant.engine.kept import KeptResults
from llmquant.engine.prepare import load_tokenizer, prepare
from llmquant.errors import OutputError
from llmquant.models.edits import Edit
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.recipe.load import load_recipe
from llmquant.recipe.plan import Plan
from tests.engine.conftest import tiny_llama

WINDOWS = torch.arange(12).view(3, 4)


def layer(*, zeros: bool) -> LayerResult:
    codes = torch.randint(-8, 8, (4, 8), dtype=torch.int8)
    grid = torch.rand(4, 2).bfloat16() + 0.1, torch.randint(-8, 8, (4, 2), dtype=torch.int8) if zeros else None
    return LayerResult(QuantizedTensor(codes, *grid), 0.25, {"dead_columns": 3})


def same(one: QuantizedTensor, other: QuantizedTensor) -> bool:
    pairs = ((one.codes, other.codes), (one.scales, other.scales), (one.zeros, other.zeros))
    return all(a is b if a is None or b is None else torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@pytest.mark.parametrize("block", [None, 7])
def test_what_is_kept_is_found(block: int | None, tmp_path: Path) -> None:
    results = {"a.b": (layer(zeros=True), 1.5), "a.c": (layer(zeros=False), 0.0)}
    KeptResults(tmp_path, WINDOWS).write(block, results, [Edit("scale_in", "a.b.weight", torch.rand(8))])
    found = KeptResults(tmp_path, WINDOWS).read(block)
    assert found
    assert found[0].keys() == results.keys()
    for name, (result, seconds) in results.items():
        again, took = found[0][name]
        assert (again.loss, again.counters, took) == (result.loss, result.counters, seconds)
        assert same(again.quantized, result.quantized)
    (edit,) = found[1]
    assert (edit.kind, edit.name) == ("scale_in", "a.b.weight")
    assert KeptResults(tmp_path, WINDOWS).read(8) is None
    assert KeptResults(tmp_path, WINDOWS + 1).read(block) is None
    assert KeptResults(tmp_path, None).read(block) is None


def test_what_is_damaged_is_not_there(tmp_path: Path) -> None:
    kept = KeptResults(tmp_path, None)
    kept.write(0, {"a": (layer(zeros=True), 1.0)}, [Edit("add", "x", torch.rand(8))])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    for file in files:
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[-1] ^= 1
        for damaged in (b"", whole[:6], whole[: len(whole) // 2], whole[:-1], bytes(flipped)):
            file.write_bytes(damaged)
            assert kept.read(0) is None
        file.unlink()
        assert kept.read(0) is None
        file.write_bytes(whole)
        assert kept.read(0) is not None


def test_of_several_processes_the_first_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {"a.b": (layer(zeros=True), 1.5)}
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    for rank in (1, 0):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        KeptResults(tmp_path, WINDOWS).write(3, results, [])
        assert (KeptResults(tmp_path, WINDOWS).read(3) is None) == bool(rank)
        assert any(tmp_path.iterdir()) == (not rank)


def test_no_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        KeptResults(tmp_path / "file", None).write(0, {"a": (layer(zeros=False), 1.0)}, [])


def planned(checkpoint: Path, recipe: dict) -> tuple[Plan, Tensor]:
    """With a transform that changes norms too, which hold no codes."""
    tuning = [{"method": "block_ap", "steps": 2, "rate": 0.1}]
    whole = load_recipe({**recipe, "transforms": [{"method": "smoothquant"}], "tuning": tuning})
    assert whole.calibration is not None
    windows = load_calibration(whole.calibration, load_tokenizer(checkpoint)).windows
    return prepare(checkpoint, whole).plan, windows


@pytest.mark.parametrize("stopped_at", [1, 5, 14, 20])
def test_a_run_goes_on(
    checkpoint: Path, gptq_recipe: dict, tmp_path: Path, stopped_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same results, edits included, without a finished block being rounded again."""
    plan, windows = planned(checkpoint, gptq_recipe)
    whole = quantize_loaded(tiny_llama(), plan, windows)
    rounded, quantize_layer = [], drive_module.quantize_layer

    def spy(row, *more):
        if len(rounded) == stopped_at:
            raise KeyError("stopped")
        rounded.append(row.module.block)
        return quantize_layer(row, *more)

    monkeypatch.setattr(drive_module, "quantize_layer", spy)
    with pytest.raises(KeyError, match="stopped"):
        quantize_loaded(tiny_llama(), plan, windows, kept=tmp_path)
    finished = {block for block in rounded if rounded.count(block) == 7}
    rounded, stopped_at = [], -1
    done = quantize_loaded(tiny_llama(), plan, windows, kept=tmp_path)
    assert set(rounded) == {0, 1, 2} - finished
    assert done.results.keys() == whole.results.keys()
    for name, result in done.results.items():
        assert same(result.quantized, whole.results[name].quantized)
        assert result.loss == whole.results[name].loss
    assert [edit.name for edit in done.edits] == [edit.name for edit in whole.edits]
    rounded = []
    assert quantize_loaded(tiny_llama(), plan, windows, kept=tmp_path).results.keys() == whole.results.keys()
    assert not rounded
