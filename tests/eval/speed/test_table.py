"""Speeds as the terminal and the page show them."""

from __future__ import annotations

import dataclasses

from llmquant.eval.lines import speedup
from llmquant.eval.metrics.speed import Section as Speed
from llmquant.eval.report import render_page
from llmquant.eval.result import EvalReport
from llmquant.eval.speed.speeds import Slower
from llmquant.eval.speed.throughput import Cell as SpeedCell
from llmquant.eval.statistics import Spread
from tests.eval.conftest import change as changed
from tests.eval.shown import parsed, printed


def timed(report: EvalReport, dense: tuple[float, ...], quantized: tuple[float, ...]) -> EvalReport:
    """The report with one dense dtype; tokens per second of each round, the same in both phases."""
    section = report[Speed]
    rows = [
        dataclasses.replace(row, cells=(dataclasses.replace(row.cells[0], prefill=speeds, decode=speeds),))
        for row, speeds in zip((section.rows[0], section.quantized), (dense, quantized), strict=True)
    ]
    return changed(report, speed={"rows": tuple(rows)})


def test_slower_models_get_a_flag(report: EvalReport) -> None:
    page = render_page([timed(report, (10.0,) * 5, (8.0,) * 5)])
    assert "▼ slower, 0.80×" in parsed(page).text
    assert speedup(Spread(0.98, 0.9, 1.1, 5))[1] == "equal"
    assert speedup(Spread(1.2, 1.1, 1.3, 5))[1] == "faster"
    assert speedup(Spread(1.2, None, None, 1)) == ("1.20x", "equal")


def test_one_round_gives_no_interval(report: EvalReport) -> None:
    bare = timed(report, (1.0,), (3.54,))
    for shown, sign in ((printed([bare]), "x"), (parsed(render_page([bare])).text, "×")):
        assert "1 round" in shown
        assert f"3.54{sign}" in shown
        assert f"3.54{sign} (" not in shown


def test_each_row_has_the_baseline_of_its_own_run(report: EvalReport) -> None:
    """Two runs on a machine that was busy in one: each ratio stands beside the speeds it comes from."""
    rows = [
        dataclasses.replace(timed(report, (dense,) * 7, (quantized,) * 7), name=name)
        for name, dense, quantized in (("first", 235.0, 470.0), ("second", 60.0, 180.0))
    ]
    page = parsed(render_page(rows)).text
    assert "235 → 470" in page
    assert "60.0 → 180" in page
    assert "7 rounds" in page
    tables = printed(rows).split("speed and memory")
    assert [("235" in part, "180" in part, "3.00x" in part) for part in tables[1:]] == [
        (True, False, False), (False, True, True),
    ]  # fmt: skip


def test_models_that_took_turns_share_a_table(report: EvalReport) -> None:
    first = timed(report, (10.0,) * 3, (8.0,) * 3)
    dense, row = first[Speed].rows
    faster = dataclasses.replace(row, cells=(dataclasses.replace(row.cells[0], decode=(30.0,) * 3),))
    second = dataclasses.replace(changed(first, speed={"rows": (dense, faster)}), name="second")
    text = printed([first, second], width=80)
    assert text.count("batch 1, context 16") == 1
    assert "…" not in text
    for word in ("▼ 0.80x (0.80–0.80)", "3.00x (3.00–3.00)", "second 8.00", "3 rounds, each with all rows in turn"):
        assert word in " ".join(text.split())


def test_a_model_alone_has_speeds_without_ratios(report: EvalReport) -> None:
    section = timed(report, (10.0,) * 3, (8.0,) * 3)[Speed]
    alone = changed(report, speed={"rows": (section.quantized,)})
    assert alone[Speed].decode_ratio is None
    assert "decode 8.00 tok/s" in alone.sentence()
    assert "8.00 (8.00–8.00)" in printed([alone])
    assert "8.00 tok/s" in parsed(render_page([alone])).text


def test_a_grid_of_speeds_has_a_table_on_the_page(report: EvalReport) -> None:
    one = timed(report, (10.0,) * 3, (8.0,) * 3)
    assert "Speed by batch and context" not in parsed(render_page([one])).text
    cells = (*one[Speed].cells, SpeedCell(16, 512))
    rows = tuple(dataclasses.replace(row, cells=row.cells * 2) for row in one[Speed].rows)
    page = parsed(render_page([changed(one, speed={"cells": cells, "rows": rows})])).text
    panel = page.partition("Speed by batch and context")[2]
    for word in ("batch 16, context 512", "▼ 0.80x", "(8.00–8.00)", "cache "):
        assert word in panel


def test_why_a_model_is_slower_stands_below_the_table(report: EvalReport) -> None:
    section = report[Speed]
    reason = Slower(
        cell=section.cells[0], phase="decode", against="float32", packed=(2.0, 1.0), kept=(1.0, 1.0), rest=(1.0, 1.0),
        because=("a decode step takes long", "[red]that is so"),
    )  # fmt: skip
    rows = (*section.dense, dataclasses.replace(section.quantized, slower=(reason,)))
    shown = changed(report, speed={"rows": rows})
    said = "decode, batch 1, context 16: a decode step takes long; [red]that is so"
    assert f"slower: int4-<b>test</b>, {said}" in " ".join(printed([shown]).split())
    assert f"slower: int4-<b>test</b>, {said}" in parsed(render_page([shown])).text
    assert EvalReport.from_json(shown.to_json())[Speed].rows == rows


def test_what_was_not_timed_is_named(report: EvalReport) -> None:
    facts = {"left_out": ("batch 16, context 2048: too large",), "others": 0.5, "load_average": 3.0}
    for given in (facts, {**facts, "cells": (), "rows": tuple(
        dataclasses.replace(row, cells=()) for row in report[Speed].rows
    )}):  # fmt: skip
        text = " ".join(printed([changed(report, speed=given)], width=80).split())
        assert "left out: batch 16, context 2048: too large" in text
        assert "other programs kept 50% of the processors busy (load average 3.0 when it began)" in text
    page = parsed(render_page([changed(report, speed=facts)])).text
    assert "Left out: batch 16, context 2048: too large." in page
    assert "Other programs kept 50%" in page
