"""What the descent aims at: every token alike, of batches that are not held out."""

from __future__ import annotations

import pytest
import torch

from llmquant.algorithms.tuning.shared.descend import split
from tests.algorithms.tuning.test_contract import Case, error, make_case, tune


@pytest.mark.parametrize(
    ("batches", "out"), [(0, []), (1, []), (2, [1]), (7, [6]), (8, [7]), (15, [7]), (16, [7, 15]), (24, [7, 15, 23])]
)
def test_one_batch_of_eight_is_held_out(batches: int, out: list[int]) -> None:
    fitted, held_out = split(range(batches))
    assert held_out == out
    assert sorted([*fitted, *held_out]) == list(range(batches))


def with_tokens(case: Case, factor: float) -> Case:
    """The first token of each sequence aims at something else, `factor` times as large."""
    for target in case.targets:
        target[:, 0] = factor * target[:, 1]
    return case


@pytest.mark.parametrize("factor", [1e4, 0.0])
def test_tokens_of_another_size_do_not_rule(factor: float) -> None:
    plain, odd = make_case(dtype=torch.float32), with_tokens(make_case(dtype=torch.float32), factor)
    before = {name: layer.quantized for name, layer in plain.layers.items()}
    best, found = (tune("scale_refit", case, steps=100, rate=5e-3) for case in (plain, odd))
    lost = [error(plain, dict(layers)) for layers in (before, best.layers, found.layers)]
    assert lost[0] - lost[2] > 0.9 * (lost[0] - lost[1]) > 0
