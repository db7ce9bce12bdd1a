"""Where time goes is watched without changing what runs."""

from __future__ import annotations

import pytest
import torch

from llmquant.api import quantize
from llmquant.eval.speed import time_shares
from llmquant.eval.speed.throughput import quiet
from llmquant.eval.speed.time_shares import Shares
from llmquant.hf.load import load
from llmquant.kernels.cpu import native
from llmquant.nn.storage import PackedStorage
from tests.engine.conftest import save_tiny, tiny_llama

IDS = torch.arange(20).view(2, 10)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A tiny packed model, whose decoder layers are fused where there are C++ kernels."""
    folder = tmp_path_factory.mktemp("shares")
    return load(quantize(save_tiny(folder / "model"), "int4-g32", folder / "out").folder)


def watch(model, names, monkeypatch) -> tuple[Shares, Shares]:
    """With a clock that ticks once when it is read."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(time_shares, "now", lambda device: float(next(ticks)))
    with quiet([model]):
        return time_shares.time_shares(model, IDS, 8, names)


def test_a_dense_model_is_divided_by_the_layers_that_the_other_packs(packed, monkeypatch) -> None:
    model, names = tiny_llama(), time_shares.packed_names(packed)
    assert len(names) == 21
    prefill, decode = watch(model, names, monkeypatch)
    assert (prefill.packed, prefill.kept) == (21, 1)  # a tick for each call
    assert (decode.packed, decode.kept) == (21, 1)  # the mean of two steps
    assert prefill.total == 2 * 22 + 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.skipif(native.library() is None, reason="without C++ kernels nothing is fused")
def test_packed_layers_are_watched_where_they_are_fused(packed, monkeypatch) -> None:
    before = [(layer, layer.kernels) for layer in packed.modules() if isinstance(layer, PackedStorage)]
    prefill, decode = watch(packed, time_shares.packed_names(packed), monkeypatch)
    calls = 4 * packed.config.num_hidden_layers  # qkv, out, gate and up, down
    assert (prefill.packed, prefill.kept, decode.packed, decode.kept) == (calls, 1, calls, 1)
    assert all(layer.kernels is kernels for layer, kernels in before)


def test_layers_without_kernels_are_watched_by_hooks(packed, monkeypatch) -> None:
    for layer in packed.modules():
        if isinstance(layer, PackedStorage):
            layer.unprepare()
    try:
        assert watch(packed, time_shares.packed_names(packed), monkeypatch)[0].packed == 21
    finally:
        for layer in packed.modules():
            if isinstance(layer, PackedStorage):
                layer.prepare()


def test_the_least_of_each_part() -> None:
    assert Shares(1, 5, 3).least(Shares(2, 4, 3)) == Shares(1, 4, 3)
