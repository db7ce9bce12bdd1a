"""Ratios are those of a round, to the first row and to the fastest dense one."""

from __future__ import annotations

from llmquant.eval.speed.speeds import Row, Speeds, Timed
from llmquant.eval.speed.throughput import Cell


def row(name: str, prefill: tuple[float, ...], decode: tuple[float, ...], **given) -> Row:
    """A row of one cell."""
    timed = Timed(prefill=prefill, decode=decode, cache_bytes=1000, peak_bytes=2000)
    facts = {"dtype": "float32", "dense": True, "accuracy": None, "static": False, "kernels": {}}
    return Row(**{"name": name, **facts, "parameter_bytes": 5000, "cells": (timed,), **given})


def speeds(*rows: Row, **given) -> Speeds:
    """Rows of one cell."""
    how = {"decode_tokens": 2, "left_out": (), "memory_note": None, "others": None, "load_average": None}
    return Speeds(**{"cells": (Cell(1, 8),), **how, "rows": rows, **given})


def test_a_slow_round_changes_no_ratio() -> None:
    one, other = row("a", (100, 50, 100), (10, 5, 10)).cells[0], row("b", (200, 100, 200), (40, 20, 40)).cells[0]
    assert (other.over(one, "prefill").median, other.over(one, "decode").median) == (2, 4)
    assert (other.over(one, "decode").q25, other.over(one, "decode").runs) == (4, 3)
    assert one.speed("decode").median == 10


def test_what_is_packed_is_compared_with_the_first_and_the_fastest_dense() -> None:
    first, fast = row("bfloat16", (1,), (4,)), row("float32", (2,), (3,))
    packed = row("int4", (9,), (9,), dense=False)
    graph = row("float32", (3,), (8,), static=True)
    found = speeds(first, fast, packed, graph)
    assert found.against(packed, 0, "prefill") == [first, fast]
    assert found.against(packed, 0, "decode") == [first]  # which is the fastest, too; another cache does not count
    assert found.against(fast, 0, "prefill") == [first]
    assert found.against(first, 0, "prefill") == []
    assert speeds(packed).against(packed, 0, "decode") == []
