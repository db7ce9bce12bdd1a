"""What a run tells of its progress adds up, so that the time left can be estimated from it."""

from __future__ import annotations

from pathlib import Path

import pytest

import llmquant
from llmquant.progress import Progress


class Recorder(Progress):
    """Keeps the stages and the work of their steps."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[int, str, float | None]] = {}
        self.work: dict[str, list[float]] = {}
        self._name = ""

    def stage(self, name: str, total: int, *, unit: str = "steps", work: float | None = None) -> None:
        """Note the stage."""
        self._name = name
        self.stages[name], self.work[name] = (total, unit, work), []

    def step(self, detail: str = "", *, steps: int = 1, work: float | None = None) -> None:
        """Note the step."""
        self.work[self._name].append(steps if work is None else work)


def test_work_adds_up_and_that_of_an_earlier_run_is_none(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = Recorder(), Recorder()
    with monkeypatch.context() as patch:
        patch.setattr("llmquant.engine.run.finalize", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            llmquant.quantize(checkpoint, "int4-g32", tmp_path / "out", progress=first)
    total, unit, work = first.stages["quantize"]
    assert (total, unit) == (4, "shards")
    assert work == sum(first.work["quantize"]) > 4
    llmquant.quantize(checkpoint, "int4-g32", tmp_path / "out", resume=True, progress=again)
    assert again.stages["quantize"] == (4, "shards", 0)
    assert again.work["quantize"] == [0, 0, 0, 0]
    assert again.stages["verify"][1] == "shards"


def test_a_calibrated_block_is_more_work_than_one_that_is_only_rounded(
    checkpoint: Path, gptq_recipe: dict[str, object], tmp_path: Path
) -> None:
    rounded, calibrated = Recorder(), Recorder()
    llmquant.quantize(checkpoint, "int4-g32", tmp_path / "rounded", progress=rounded)
    llmquant.quantize(checkpoint, gptq_recipe, tmp_path / "calibrated", progress=calibrated)
    assert min(calibrated.work["quantize"][1:]) > 10 * max(rounded.work["quantize"])
