"""From names to tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from llmquant.errors import DataError
from llmquant.eval.tasks import load as module
from llmquant.eval.tasks.load import Group, load
from tests.eval.tasks.conftest import lines


def test_names_with_files(files) -> None:
    loaded = load(("blimp", "piqa", "piqa"), files, ())
    assert list(loaded.tasks) == ["blimp_adjunct_island", "blimp_wh_island", "piqa"]
    assert loaded.groups == (Group("blimp", ("blimp_adjunct_island", "blimp_wh_island"), by_size=False),)
    assert [task.get_config("num_fewshot") for task in loaded.tasks.values()] == [0, 0, 0]
    assert load(("blimp", "piqa"), files, ()) is loaded
    assert load(("blimp_wh_island",), files, ()).groups == ()


def test_a_file_of_one_set_comes_before_that_of_all(files, tmp_path: Path) -> None:
    (tmp_path / "wh_island.jsonl").write_text(lines([{"sentence_good": "a b.", "sentence_bad": "b a."}]))
    given = {**files, "blimp_wh_island": str(tmp_path / "wh_island.jsonl")}
    (task,) = load(("blimp_wh_island",), given, ()).tasks.values()
    assert len(task.eval_docs) == 1


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Definitions of two tasks, and of groups of them."""
    (tmp_path / "rows.jsonl").write_text(lines([{"q": "one", "a": "two"}] * 3))
    where = {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")}
    task = {"dataset_path": "json", "dataset_kwargs": where, "test_split": "test", "output_type": "loglikelihood"}
    texts = {"doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "metric_list": [{"metric": "acc"}]}
    for name in ("own_a", "own_b"):
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **task, **texts}))
    for name, by_size in (("even", False), ("sized", True)):
        group = {"group": name, "task": ["own_a", "own_b"]}
        listed = {"aggregate_metric_list": [{"metric": "acc", "weight_by_size": by_size}]}
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**group, **listed}))
    return tmp_path


def test_definitions_of_the_user_need_nothing_of_the_harness(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_own(*, include_path: list[str | Path], include_defaults: bool = True) -> TaskManager:
        assert not include_defaults, "all tasks of the harness are read"
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(module, "TaskManager", only_own)
    assert load(("even",), {}, (str(own),)).groups == (Group("even", ("own_a", "own_b"), by_size=False),)
    assert load(("sized",), {}, (str(own),)).groups == (Group("sized", ("own_a", "own_b"), by_size=True),)
    assert list(load(("own_*",), {}, (str(own),)).tasks) == ["own_a", "own_b"]
    (own / "rows.jsonl").unlink()
    with pytest.raises(DataError, match="the tasks own_a cannot be loaded"):
        load(("own_a",), {}, (str(own),))


def test_what_is_not_there_is_refused(files, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no folder missing"):
        load(("piqa",), files, ("missing",))
    with pytest.raises(DataError, match="'lambda'; did you mean 'lambada'"):
        load(("lambada",), {"lambda": files["lambada"]}, ())
    few = TaskManager(include_path=str(own), include_defaults=False)
    monkeypatch.setattr(module, "TaskManager", lambda **_: few)
    with pytest.raises(DataError, match="no task 'own_c'; did you mean 'own_"):
        load(("own_c",), {}, ())


def test_without_a_network_the_data_must_be_named(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own / "piqa.yaml").write_text(
        json.dumps({"task": "piqa", "dataset_path": str(own / "nowhere"), "test_split": "test", "metric_list": []})
    )
    few = TaskManager(include_path=str(own), include_defaults=False)
    monkeypatch.setattr(module, "TaskManager", lambda **_: few)
    with pytest.raises(DataError, match="without a network, name the data: piqa=FILE"):
        load(("piqa",), {}, ())
