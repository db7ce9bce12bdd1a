"""Why a model is slower: only what the run and the machine show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmquant.eval.speed import bench, slowness
from llmquant.eval.speed.contender import Contender
from llmquant.eval.speed.slowness import Facts, Watched, explain
from llmquant.eval.speed.throughput import Cell, ThroughputOptions, Timing
from llmquant.eval.speed.time_shares import Shares
from llmquant.hf.load import load

FAST = {"linear_int4: avx2, exact": 14}
# 1e9 weights: 2 GB dense, 0.5 GB packed. Decoding reads 10 GB/s in both.
DENSE = Watched(
    name="float32", dtype="float32", prefill=Shares(1.0, 0.1, 0.2), decode=Shares(0.2, 0.05, 0.05),
    packed_bytes=2_000_000_000, kernels={},
)  # fmt: skip
PACKED = Watched(
    name="int4", dtype="float32", prefill=Shares(1.5, 0.1, 0.2), decode=Shares(0.05, 0.05, 0.05),
    packed_bytes=500_000_000, kernels=FAST,
)  # fmt: skip
FACTS = Facts(tokens=64, weights=1_000_000_000, kept=["lm_head"], slow_dtypes={})


def test_a_prefill_of_packed_layers_that_memory_does_not_bind() -> None:
    where, why = explain(PACKED, DENSE, "prefill", FACTS)
    assert where == "a prefill takes 1800 ms (in float32 1300): packed layers 1500 (1000), kept layers 100 (100), " + (
        "the rest 200 (200)"
    )
    assert why.startswith("arithmetic decides, not memory: to read 500 MB of packed weights takes at most 3 % of that")
    assert "at the 10.0 GB/s that decoding reached" in why
    assert "128 GFLOP/s there, and 85.3 GFLOP/s here" in why


def test_arithmetic_is_not_blamed_where_reading_could_take_the_time() -> None:
    slow = replace(PACKED, decode=Shares(1.4, 0.05, 0.05))  # dense decoding still shows 10 GB/s
    assert "arithmetic decides" in explain(slow, DENSE, "decode", replace(FACTS, tokens=1))[1]
    none = replace(DENSE, packed_bytes=250_000_000)  # decoding shows 1.25 GB/s, and no more
    assert explain(slow, none, "decode", replace(FACTS, tokens=1))[1] == "packed layers take longer; why was not found"


def test_a_reference_kernel_is_named_with_its_reason() -> None:
    kernels = {**FAST, "linear_int3: reference, avx2 unpack (groups of 20, not a multiple of 32)": 7}
    why = explain(replace(PACKED, kernels=kernels), DENSE, "prefill", FACTS)[1]
    assert why.startswith("no fast kernel: packed layers run on linear_int3: reference, avx2 unpack (groups of 20")
    assert "(7)" in why
    assert "avx2, exact" not in why


@pytest.mark.parametrize("slow", [{}, {"bfloat16": "this CPU has no instructions for bfloat16"}])
def test_what_computes_in_another_dtype_and_takes_longer(slow: dict) -> None:
    narrow = replace(PACKED, dtype="bfloat16", prefill=Shares(1.0, 0.4, 0.6))
    _, why = explain(narrow, DENSE, "prefill", replace(FACTS, slow_dtypes=slow))
    said = "kept layers (lm_head) and attention and norms compute in bfloat16 here, in float32 there"
    assert why == said + ("; this CPU has no instructions for bfloat16" if slow else "")
    same = replace(narrow, dtype="float32")
    assert "compute in" not in " ".join(explain(same, DENSE, "prefill", FACTS))


def test_a_large_share_of_kept_layers_is_named() -> None:
    head = replace(PACKED, decode=Shares(0.05, 0.06, 0.06)), replace(DENSE, decode=Shares(0.05, 0.06, 0.02))
    why = explain(*head, "decode", FACTS)
    assert "kept layers (lm_head) take 35 % of the time, which packing the others does not shorten" in why


def test_nothing_is_made_up() -> None:
    assert explain(replace(PACKED, prefill=Shares(1.05, 0.12, 0.22)), DENSE, "prefill", FACTS)[1:] == (
        "no part stands out",
    )
    fast = explain(PACKED, DENSE, "decode", FACTS)
    assert fast[1:] == ("so it was not slower when the models ran alone",)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A tiny packed model."""
    from llmquant.api import quantize
    from tests.engine.conftest import save_tiny

    folder = tmp_path_factory.mktemp("slowness")
    return load(quantize(save_tiny(folder / "model"), "int4-g32", folder / "out").folder)


def test_only_slower_cells_are_watched(packed, monkeypatch) -> None:
    from tests.engine.conftest import tiny_llama

    dense = tiny_llama()
    watched: list[tuple[bool, int]] = []

    def time_once(model, ids, context) -> Timing:
        return Timing(2.0 if model is dense and len(ids) == 4 else 1.0, 1.0)

    def time_shares(model, ids, context, names) -> tuple[Shares, Shares]:
        watched.append((model is dense, len(ids)))
        assert "model.layers.0.mlp.up_proj" in names
        assert "lm_head" not in names
        return (DENSE if model is dense else PACKED).prefill, (DENSE if model is dense else PACKED).decode

    monkeypatch.setattr(bench, "time_once", time_once)
    monkeypatch.setattr(slowness, "time_shares", time_shares)
    monkeypatch.setattr("llmquant.eval.speed.throughput._MAX_ROUNDS", 3)
    options = ThroughputOptions(batches=[1, 4], contexts=[8], decode_tokens=2, seconds=60)
    found = bench.bench([Contender("fp32", dense), Contender("int4", packed)], options)
    assert watched == [(False, 4), (True, 4), (True, 4), (False, 4)]
    (slower,) = found.rows[1].slower
    assert (slower.cell, slower.phase, slower.against) == (Cell(4, 8), "prefill", "fp32")
    assert (slower.packed, slower.kept) == ((1.5, 1.0), (0.1, 0.1))
    assert not found.rows[0].slower
