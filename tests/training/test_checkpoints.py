"""Which folders of a trainer are checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llmquant.training.checkpoints import last_checkpoint, remove_torn


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("left", [0.0, 0.5, None])
def test_what_a_machine_that_went_down_left_is_no_checkpoint(tmp_path: Path, name: str, left: float | None) -> None:
    torn, other = tmp_path / "checkpoint-4", tmp_path / "checkpoint-2"
    for path, step in ((torn, 4), (other, 2)):
        write_checkpoint(path, step)
    assert last_checkpoint(tmp_path) == torn
    data = (torn / name).read_bytes()
    (torn / name).unlink()
    if left is not None:
        (torn / name).write_bytes(data[: int(left * len(data))])
    assert last_checkpoint(tmp_path) == other
    remove_torn(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("name", ["optimizer.bin", "pytorch_model_fsdp.bin"])
def test_torn_files_of_fsdp(tmp_path: Path, name: str) -> None:
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        write_checkpoint(folder, step)
        (folder / "optimizer.pt").rename(folder / "optimizer.bin")
        torch.save({"weight": torch.arange(600.0)}, folder / "pytorch_model_fsdp.bin")
    torn = tmp_path / "checkpoint-4"
    assert last_checkpoint(tmp_path) == torn
    data = (torn / name).read_bytes()
    (torn / name).write_bytes(data[: len(data) // 2])
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_a_checkpoint_without_the_best_one_is_no_checkpoint(tmp_path: Path) -> None:
    for step, best in ((2, 2), (4, 2), (10, 10)):
        write_checkpoint(tmp_path / f"checkpoint-{step}", step, best)
    (tmp_path / "checkpoint-12").write_text("a file")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-2/optimizer.pt").unlink()
    remove_torn(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def write_checkpoint(folder: Path, step: int, best: int | None = None) -> None:
    """What the trainer writes of a model, in small."""
    folder.mkdir()
    save_file({"weight": torch.arange(600.0)}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.arange(600)}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "best_global_step": best}))
