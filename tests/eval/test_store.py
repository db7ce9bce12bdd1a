"""Parts on disk: they come back as they were, and damage, other evaluations and full disks are noticed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from llmquant.errors import OutputError
from llmquant.eval import store as module
from llmquant.eval.metrics import find, metrics
from llmquant.eval.store import Store, fingerprint
from tests.eval.conftest import Noted, compare


@pytest.fixture
def notes() -> Noted:
    return Noted()


@pytest.fixture
def store(tmp_path: Path, notes: Noted) -> Store:
    return Store(tmp_path, {"windows": "sha256:1"}, notes)


def _files(root: Path) -> list[Path]:
    return [file for file in root.rglob("*") if file.is_file()]


def test_parts_come_back_as_they_were(store, report, baseline, perturbed, tokenizer, text, tmp_path, notes) -> None:
    from llmquant.data.windows import make_windows

    windows = make_windows([text], tokenizer, source="t", length=40, max_windows=8)
    scores = compare(baseline, perturbed, windows).scores
    assert store.scores("0 8") is None
    store.keep_scores("0 8", scores)
    again = store.scores("0 8")
    assert again is not None
    for name in ("window", "kl", "nll_baseline", "nll_quantized", "top_quantized", "target"):
        assert (getattr(again, name) == getattr(scores, name)).all()
        assert getattr(again, name).dtype == getattr(scores, name).dtype
    for metric in (each for each in metrics() if each.name in report.sections):
        store.keep_section(metric, "float32", report.sections[metric.name])
        assert store.section(metric, "float32") == report.sections[metric.name]
        assert store.section(metric, "bfloat16") is None
    assert not notes.notes
    assert not list(tmp_path.rglob("*.new"))


@pytest.mark.parametrize("damage", [b"", b"x" * 20, b"x" * 400])
def test_a_damaged_part_is_absent_with_a_note(store, tmp_path, notes, damage) -> None:
    store.put("report", b"content" * 60)
    (file,) = _files(tmp_path)
    file.write_bytes(damage)
    assert store.get("report") is None
    assert "is damaged; this part is measured again" in notes.notes[0]


def test_whole_parts_of_another_shape_are_damaged_too(store, notes) -> None:
    store.put("scores 0 8", b"no arrays")
    store.put("perplexity float32", b"{}")
    assert store.scores("0 8") is None
    assert store.section(find("perplexity"), "float32") is None
    assert len(notes.notes) == 2


def test_another_evaluation_has_parts_of_its_own(store, tmp_path, notes) -> None:
    store.put("report", b"one")
    assert Store(tmp_path, {"windows": "sha256:2"}, notes).get("report") is None
    assert Store(tmp_path, {"windows": "sha256:1"}, notes).get("report") == b"one"


def test_a_full_disk_is_an_error_that_says_what_to_do(store, tmp_path, monkeypatch) -> None:
    store.put("report", b"one")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device\); make room .* what is finished is kept"):
        store.put("report", b"other")
    assert store.get("report") == b"one"


def test_a_fingerprint_changes_with_the_files(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert fingerprint(tmp_path) != before
