"""A result as markdown: ratios to the right peers, and all that went wrong."""

from __future__ import annotations

from typing import Any

from llmquant.kernels.bench.common.contender import DENSE, OURS, Contender
from llmquant.kernels.bench.common.facts import facts
from llmquant.kernels.bench.common.plan import Cell
from llmquant.kernels.bench.common.rows import Entry, Sample, rows_of
from llmquant.kernels.bench.common.table import details, markdown, summary
from llmquant.kernels.bench.common.weights import Shape


def entry(kernel: str, us: float, bits: float, **more: Any) -> Entry:
    one = Contender(kernel, f"{bits}", "int8", int(bits * 1000), lambda rows: [])
    return Entry(one, times=Sample([us]), **more)


def test_tables_compare_with_the_best_peer_of_as_many_bits() -> None:
    entries = [
        entry(DENSE, 20.0, 32), entry(OURS, 10.0, 4.125, error=1e-5), entry("a", 15.0, 4.5), entry("b", 12.0, 8.5),
        entry("c", 14.0, 4.25), entry("half", 1.0, 16), entry("none", 1.0, 4.0),
    ]  # fmt: skip
    entries[-1].times, entries[-1].failed = Sample(), "OutOfMemoryError: much"
    rows = rows_of(entries, Sample([1.0], nbytes=1000), Cell(Shape(80, 100), 3), threads=2)
    assert "| 2 | 80x100 | 3 | 4.125 int8 | 10.0 | 0.41 | 2.00 | c 4.25 int8 | 1.40 | 1.0e-05 |" in summary(rows)
    (table,) = details(rows)
    assert "| b 8.5 int8 | 8.5 | 12.0 (1.67) |" in table
    run = {"rows": rows, "failures": ["bad"], "crashes": [{"step": "a @ b", "reason": "it hung"}], "left_out": ["x"]}
    run |= {"plan": {"where": "cpu"}}
    run["peers"] = {"humming": "not installed", "marlin": "takes part"}
    result = facts("cpu", "abc") | {"runs": [run], "seconds": 12}
    text = markdown(result)
    for said in (
        "commit abc", "- bad", "- a @ b: it hung", "- humming: not installed", "- x",
        "- none 4.0 int8: OutOfMemoryError: much (80x100 M=3)",
    ):  # fmt: skip
        assert said in text
    assert "marlin" not in text


def test_a_column_without_a_value_is_left_out_and_a_gpu_has_no_threads() -> None:
    rows = rows_of([entry(OURS, 10.0, 4.125, error=1e-5)], Sample([1.0], nbytes=1000), Cell(Shape(80, 100), 3), 1)
    run = {"rows": rows, "failures": [], "crashes": [], "left_out": ["a", "b"], "peers": {}}
    shown = {
        where: markdown(facts("cpu", "abc") | {"runs": [run | {"plan": {"where": where}}], "seconds": 1})
        for where in ("cpu", "cuda")
    }
    assert "| weight | M | kernel | µs | of memory | error |" in shown["cuda"]
    assert "| threads | weight |" in shown["cpu"]
    assert "80x100, 1 thread, µs (x dense):" in shown["cpu"]
    assert "thread" not in shown["cuda"]
    assert "- 2 cells, first a" in shown["cuda"]
    for row in rows:
        del row["us"], row["stream_share"]
    dry = markdown(facts("cpu", "abc") | {"runs": [run | {"plan": {"where": "dry"}}], "seconds": 1})
    assert "| weight | M | kernel | error |\n|---|--:|---|--:|\n| 80x100 | 3 | 4.125 int8 | 1.0e-05 |" in dry
    assert "nothing is timed" in dry
    assert "µs" not in dry
