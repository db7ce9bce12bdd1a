"""Cells that a model or a machine cannot hold are left out, each with its reason."""

from __future__ import annotations

import pytest

from llmquant.eval.speed import fitting
from llmquant.eval.speed.throughput import Cell


def test_a_context_that_the_model_does_not_have(baseline) -> None:
    cells, left_out = fitting.fitting([baseline], [Cell(1, 32), Cell(1, 63)], 2)
    assert cells == (Cell(1, 32),)
    assert left_out == ("batch 1, context 63: with 2 decoded it takes 65 tokens, the model's context is 64",)


@pytest.mark.parametrize(("standing", "kept"), [(0, [Cell(1, 32), Cell(4, 32)]), (2, [Cell(1, 32)])])
def test_what_memory_does_not_hold(baseline, monkeypatch, standing: int, kept: list[Cell]) -> None:
    # A token takes 2 layers x (key, value) x 2 heads x 8 x 4 bytes in the cache and 3 x (32 + 48) x 4 bytes at work.
    one = 34 * 2 * 2 * 2 * 8 * 4 + 32 * 3 * 80 * 4
    monkeypatch.setattr(fitting, "free_bytes", lambda device: int(4 * one / 0.85) + 1)
    cells, left_out = fitting.fitting([baseline], [Cell(1, 32), Cell(4, 32), Cell(16, 32)], 2, standing=standing)
    assert list(cells) == kept
    assert left_out[-1].startswith("batch 16, context 32: it needs about ")
    assert left_out[-1].endswith(" are free")


def test_caches_of_fixed_size_stay_for_all_cells(baseline, monkeypatch) -> None:
    work, cache = 32 * 3 * 80 * 4, 34 * 2 * 2 * 2 * 8 * 4
    monkeypatch.setattr(fitting, "free_bytes", lambda device: int((2 * work + 3 * cache) / 0.85) + 1)
    cells = [Cell(1, 32), Cell(2, 32)]
    assert fitting.fitting([baseline], cells, 2)[0] == tuple(cells)
    assert fitting.fitting([baseline], cells, 2, standing=1)[0] == tuple(cells)
    monkeypatch.setattr(fitting, "free_bytes", lambda device: int((2 * work + 2 * cache) / 0.85) + 1)
    assert fitting.fitting([baseline], cells, 2)[0] == tuple(cells)
    assert fitting.fitting([baseline], cells, 2, standing=1)[0] == (Cell(1, 32),)


def test_a_system_that_tells_no_memory_leaves_nothing_out(baseline, monkeypatch) -> None:
    monkeypatch.setattr(fitting, "free_bytes", lambda device: None)
    assert fitting.fitting([baseline], [Cell(1000, 32)], 2) == ((Cell(1000, 32),), ())
