"""What `llmquant plan` shows beyond the plan itself: the kernels of this machine."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from llmquant.api import plan
from llmquant.cli.main import main
from llmquant.cli.plan import print_plan
from tests.engine.conftest import save_tiny, tiny_llama


@pytest.mark.parametrize("with_gpu", [False, True])
def test_kernels_of_the_devices_that_are_there(
    with_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMQUANT_GPU_KERNELS", "reference")  # what can be said of a GPU without asking it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: with_gpu)
    tiny_llama().config.save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path / "config.json"), "-r", "int4-g32"]) == 0
    shown = capsys.readouterr().out
    assert "kernels on this machine's CPU\n  int4-g32  linear_int4: " in shown
    on_gpu = "kernels on this machine's GPU\n  int4-g32  linear_int4: reference, torch unpack (LLMQUANT_GPU_KERNELS"
    assert (on_gpu in shown) == with_gpu


def test_no_kernels_where_llmquant_does_not_run_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_llama().config.save_pretrained(tmp_path)
    recipe = tmp_path / "gguf.yaml"
    recipe.write_text("version: 1\nformat: gguf\nrules:\n  - match: linear\n    scheme: int4-g32\n")
    assert main(["plan", str(tmp_path / "config.json"), "-r", str(recipe)]) == 0
    shown = capsys.readouterr().out
    assert "llama.cpp" in shown
    assert "kernels on this machine" not in shown


def test_all_that_is_done_to_a_block_is_shown_and_a_missing_text_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny(tmp_path)
    recipe = tmp_path / "smooth.yaml"
    lines = (
        "version: 1\nrules: [{match: linear, scheme: w8a8-dynamic}]\ntransforms: [{method: smoothquant, alpha: 0.7}]\n"
    )
    recipe.write_text(lines + "tuning: [{method: scale_refit}]\ncalibration: {samples: 4, length: 32}\n")
    assert main(["plan", str(tmp_path), "-r", str(recipe)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for line in ("transform smoothquant, alpha 0.7", "tuning scale_refit", "calibration builtin:mixed, 4 x 32 tokens"):
        assert line in shown
    recipe.write_text(recipe.read_text().replace("{samples", "{dataset: nothere.jsonl, samples"))
    assert main(["plan", str(tmp_path), "-r", str(recipe)]) == 1
    assert "no text file at nothere.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("{text: 'builtin:mixed'}", "training on builtin:mixed: weights, ranges lsq, 8 x 512 tokens a step, epochs 1"),
        ("{}", "training by llmquant qat: weights, ranges lsq, 8 x 512 tokens a step, epochs 1"),
        (
            "{lora: {rank: 8}, steps: 50}",
            "lora of rank 8, ranges lsq, 8 x 512 tokens a step, epochs 1, at most 50 steps",
        ),
        ("{ranges: scales-only, batch: 2, length: 64}", "scales, ranges scales-only, 2 x 64 tokens a step"),
    ],
)
def test_what_is_trained_is_shown(section: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "trained.yaml"
    recipe.write_text(f"version: 1\nrules: [{{match: linear, scheme: int4}}]\nqat: {section}\n")
    assert main(["plan", str(save_tiny(tmp_path) / "config.json"), "-r", str(recipe)]) == 0
    assert line in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("width", [80, 120])
def test_names_stay_in_one_piece(width: int, tmp_path: Path) -> None:
    tiny_llama().config.save_pretrained(tmp_path)
    file = io.StringIO()
    print_plan(Console(file=file, width=width), plan(tmp_path, "int4-g32"))
    shown = file.getvalue()
    assert "model.layers.{0..2}.self_attn.q_proj " in shown
    assert ("before" in shown) == (width > 100)
