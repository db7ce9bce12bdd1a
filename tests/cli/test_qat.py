"""`llmquant qat` as its user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llmquant.cli.main import main
from tests.engine.conftest import save_tiny
from tests.training.conftest import recipe


@pytest.fixture
def typed(tmp_path: Path) -> list[str]:
    text, chosen = tmp_path / "text.txt", tmp_path / "mine.yaml"
    text.write_text("\n".join(f"{i} times {i + 1} makes {i * (i + 1)}; so it goes on." for i in range(60)))
    chosen.write_text(yaml.safe_dump(recipe(length=24, batch=4, steps=9, learning_rate=0.2)))
    source = save_tiny(tmp_path / "dense")
    return ["qat", str(source), "-r", str(chosen), "--train", str(text), "-o", str(tmp_path / "out"), "--device", "cpu"]


def test_the_course_of_a_run_and_what_it_leaves(typed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*typed, "--steps", "4", "--save-steps", "2", "--recompute", "--batch-size-per-device", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "train: 4 steps" in lines
    assert any(line.startswith("note: before training: loss 5.") for line in lines)
    assert any("bits per weight" in line and "trained on 384 tokens" in line for line in lines)
    at = next(i for i, line in enumerate(lines) if line.startswith("Loss on held-out text (1 windows"))
    rows = [line.split() for line in lines[at + 2 : at + 5]]
    assert [row[0] for row in rows] == ["0", "2", "4"]
    assert rows[0][-1] == "rounded"
    assert rows[2][-1] == "kept"
    assert rows[2][3].endswith("%")
    assert main(["verify", typed[7]]) == 0
    assert main(typed) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_a_recipe_that_does_not_train(typed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    typed[3] = "int8"
    assert main(typed) == 1
    assert "llmquant quantize" in capsys.readouterr().err
