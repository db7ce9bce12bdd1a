"""--tasks becomes options of a metric."""

from __future__ import annotations

import argparse

import pytest

from llmquant.cli import arguments, task_arguments
from llmquant.errors import DataError


def asked(*words: str) -> dict:
    parser = argparse.ArgumentParser()
    task_arguments.add(parser)
    parser.add_argument("--metric", type=arguments.setting, action="append", default=[])
    return task_arguments.asked(parser.parse_args(words))


def test_options() -> None:
    assert asked("--metric", "layers=false") == {"layers": False}
    given = ("--tasks", "lambada, piqa", "--task-data", "piqa=a=b", "--task-include", "x", "--task-include", "y")
    options = {"names": ["lambada", "piqa"], "files": {"piqa": "a=b"}, "include": ["x", "y"], "limit": None}
    assert asked(*given) == {"tasks": options}
    assert asked(*given, "--task-limit", "5") == {"tasks": {**options, "limit": 5}}
    assert asked(*given, "--metric", 'tasks={"batch_size": 2}') == {"tasks": {**options, "batch_size": 2}}


def test_mistakes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="name some: --tasks A,B"):
        asked("--task-limit", "5")
    with pytest.raises(SystemExit):
        asked("--tasks", "piqa", "--task-data", "piqa")
    assert "wanted NAME=FILE" in capsys.readouterr().err
