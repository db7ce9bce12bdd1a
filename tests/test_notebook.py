"""Results and bars in notebooks, one of them a real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import llmquant
from llmquant.notebook import Bars, default_progress, html_table
from llmquant.progress import Progress
from tests.engine.conftest import save_tiny, tiny_llama

PROGRAM = """
import llmquant
result = llmquant.quantize({model!r}, "int4-g32", {out!r})
"""


def test_names_from_outside_are_no_html() -> None:
    shown = html_table("<b>", ["a"], [["<script>\nx"]], ["&"])
    assert "<script>" not in shown
    assert "&lt;script&gt;<br>x" in shown
    assert "<div>&amp;</div>" in shown


def test_numbers_stand_to_the_right() -> None:
    shown = html_table("t", ["a", ">bits"], [["x", "tied"]])
    assert '<th style="text-align: right">bits</th>' in shown
    assert '<td style="text-align: right">tied</td>' in shown
    assert '<td style="text-align: left">x</td>' in shown


def test_plans_runs_and_reports_are_tables(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n".join(f"line {i} of a text with windows enough" for i in range(60)))
    result = llmquant.quantize(model, "int4-g32", tmp_path / "out")
    report = llmquant.evaluate(result.folder, model, text=str(tmp_path / "text.txt"), length=32, speed=0)
    alone = llmquant.evaluate(result.folder, None, text=str(tmp_path / "text.txt"), length=32, speed=0)
    for shown, words in (
        (llmquant.plan(model, "int4-g32")._repr_html_(), ("mlp.down_proj", "int4-g32", "bits per weight")),
        (result._repr_html_(), ("mlp.", "rtn", "tensors verified", "%")),
        (report._repr_html_(), ("perplexity", "KL", '<td style="text-align: left">model</td>', report.sentence()[:20])),
        (alone._repr_html_(), ("perplexity",)),
    ):
        assert shown.count("<table>") == 1
        for word in words:
            assert word in shown, word


def test_bars_show_stages_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    assert type(default_progress()) is Progress, "no notebook here"
    llmquant.quantize(tiny_llama(), "int4-g32", progress=Bars())
    Bars().note("look")
    shown = capsys.readouterr()
    assert "quantize: 100%" in shown.out
    assert "4/4" in shown.out
    assert "note: look" in shown.out


@pytest.mark.slow
def test_a_notebook_shows_bars_unasked(tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    code = PROGRAM.format(model=str(save_tiny(tmp_path / "model")), out=str(tmp_path / "out"))
    cells = [nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("result")]
    notebook: Any = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    printed = "".join(each.get("text", "") for each in notebook.cells[0].outputs)
    assert "quantize: 100%" in printed
    assert "verify: 100%" in printed
    assert "tensors verified" in notebook.cells[1].outputs[0].data["text/html"]
