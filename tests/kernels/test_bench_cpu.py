"""kernels/bench: its cases, what it writes, and that its reference is what the weights mean. No time is judged here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmquant.kernels.bench import cpu, session, table
from llmquant.kernels.bench.cases import SCHEMES, plan_from, rotate_bytes
from llmquant.kernels.bench.contender import Contender, Shape, copies
from llmquant.kernels.bench.ours import dequantized64, random_weight
from llmquant.kernels.bench.stream import Stream
from llmquant.kernels.bench.timing import Samples, measure
from llmquant.kernels.cpu import native
from llmquant.kernels.ops.dequantize import dequantize_reference
from llmquant.spec import Scheme

MICRO = ["--quick", "--sizes", "64x128", "--m", "1", "3", "--threads", "1", "--seconds", "0.02", "--rotate-mb", "0.02"]
needs_library = pytest.mark.skipif(native.library() is None, reason="no C++ kernels")


def test_quick_plan_has_the_promised_cases() -> None:
    plan = plan_from(cpu.parse(["--quick"]))
    assert {(str(shape), batch) for shape, _, batch in plan.cases()} == {("4096x4096", m) for m in (1, 4, 128)}
    assert {"int4-g128", "int8"} <= set(plan.schemes)
    assert plan.peers == ()


def test_full_plan_crosses_everything() -> None:
    plan = plan_from(cpu.parse(["--threads", "1", "2"]))
    cases = list(plan.cases())
    assert len(cases) == len(set(cases)) == 5 * 5 * 2
    assert plan.schemes == SCHEMES
    assert (Shape(11008, 4096), 2, 512) in cases


def test_command_line_narrows_a_plan() -> None:
    plan = plan_from(cpu.parse(["--sizes", "32x64", "--schemes", "int8", "--peers", "--rotate-mb", "1.5"]))
    assert (plan.shapes, plan.schemes, plan.peers) == ((Shape(32, 64),), ("int8",), ())
    assert plan.rotate_bytes == 1_500_000
    with pytest.raises(ValueError, match="NxK"):
        plan_from(cpu.parse(["--sizes", "32*64"]))


def test_copies_exceed_the_cache() -> None:
    assert rotate_bytes(cache_bytes=37 << 20) > 3 * (37 << 20) - 1
    assert copies(110_000_000, 8_650_752) * 8_650_752 >= 110_000_000
    assert copies(100, 1_000_000) == 2, "never the same weight twice in a row"


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym", "int8"])
def test_reference_is_the_dequantized_weight(name: str) -> None:
    scheme, shape = Scheme.parse(name), Shape(24, 64)
    packed, scale, zero = random_weight(scheme, shape)
    expected = dequantize_reference(packed, scale.double(), zero, scheme.bits, shape.k, torch.float64)
    torch.testing.assert_close(dequantized64((packed, scale, zero), scheme, shape), expected, rtol=1e-15, atol=0)
    every_third = dequantized64((packed, scale, zero), scheme, shape, step=3)
    torch.testing.assert_close(every_third, expected[::3], rtol=1e-15, atol=0)


def test_measure_lets_everybody_run_in_turn() -> None:
    order: list[str] = []

    def contender(name: str) -> Contender:
        return Contender(name, "x", "x", 1, lambda rows: [lambda: order.append(f"{name}{rows}")] * 2)

    samples = measure([contender("a"), contender("b")], Stream(1 << 21), rows=7, threads=1, seconds=0)
    assert [len(entry.times) for entry in samples] == [3, 3, 3]
    assert [name[0] for name in order] == list("aabb" * 3), "each runs a warm-up and a timed call per round"
    assert all(name.endswith("7") for name in order)


def test_samples_take_each_copy_in_turn() -> None:
    seen: list[int] = []
    samples = Samples([lambda i=i: seen.append(i) for i in range(3)])
    for _ in range(3):
        samples.burst(0, lambda: 0)
    assert seen == [1, 2, 0, 1, 2, 0]
    samples.times = list(range(0, 101_000, 1000))
    assert (samples.quantile(0.1), samples.quantile(0.5)) == (10, 50)


@needs_library
def test_micro_run_writes_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr("sys.argv", ["cpu.py", *MICRO, "--json", str(tmp_path / "new" / "result.json")])
    before = torch.get_num_threads()
    cpu.main()
    assert torch.get_num_threads() == before
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert result["stream_gbs"]["1"] > 0
    assert {"date", "commit", "versions", "plan"} <= set(result)
    assert {"cpu", "isa", "cores", "load", "load_after"} <= set(result["machine"])
    wanted = {"kernel", "scheme", "mode", "m", "n", "k", "threads", "us", "stream_share", "ratio_fp32"}
    found = {(row["scheme"], row["mode"], row["m"]) for row in result["rows"] if row["kernel"] == "llmquant"}
    assert found == {(s, mode, m) for s in ("int4-g128", "int8") for mode in ("fast", "exact") for m in (1, 3)}
    for row in result["rows"]:
        assert wanted <= set(row)
        assert row["us"] > 0
        if row["kernel"] == "llmquant":
            assert row["error"] < (1e-4 if row["mode"] == "exact" else 2e-2)
    dense = [row for row in result["rows"] if row["scheme"] == "fp32"]
    assert [row["ratio_fp32"] for row in dense] == [1, 1]


@needs_library
def test_a_scheme_that_the_kernels_cannot_run_is_refused() -> None:
    plan = plan_from(cpu.parse([*MICRO, "--schemes", "int4-g8"]))
    with pytest.raises(RuntimeError, match="int4-g8 at 64x128: "):
        session.run(plan)


def row(kernel: str, us: float, bits: float, **more: Any) -> dict[str, Any]:
    case = {"m": 1, "n": 8, "k": 8, "threads": 2, "stream_share": 0.5, "ratio_fp32": 2.0, "error": 1e-5}
    return {"kernel": kernel, "scheme": f"{bits}", "mode": "int8", "us": us, "bits": bits} | case | more


def test_tables_compare_with_the_best_peer_of_as_many_bits() -> None:
    ours = row("llmquant", 10.0, 4.125, mode="fast")
    peers = [row("a", 15.0, 4.5), row("b", 12.0, 8.5), row("c", 14.0, 4.25), row("torch", 1.0, 16.0)]
    assert table.best_peer(ours, [ours, *peers]) is peers[2]
    assert table.best_peer(ours, [ours]) is None
    assert "| 2 | 8x8 | 1 | 4.125 fast | 10 | 0.50 | 2.00 | c 4.25 int8 | 1.40 | 1.0e-05 |" in table.summary(
        [ours, *peers]
    )
    assert "| b 8.5 int8 | 8.5 | 12 (2.00) |" in table.details([ours, *peers])


def test_an_exception_in_a_kernel_is_not_hidden() -> None:
    def fail() -> Tensor:
        raise ZeroDivisionError

    bind: Callable[[int], list[Callable[[], object]]] = lambda rows: [fail]  # noqa: E731
    with pytest.raises(ZeroDivisionError):
        measure([Contender("a", "x", "x", 1, bind)], Stream(1 << 21), rows=1, threads=1, seconds=0)
