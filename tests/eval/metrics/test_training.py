"""How training went, from llmquant.json to the page."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from llmquant.eval.metrics.base import NoOptions
from llmquant.eval.metrics.training import measure, panels
from llmquant.eval.result import EvalReport
from tests.eval.conftest import TRAINING, change


def measured(training: Any, qat: Any = None) -> Any:
    made = {"training": training, "recipe": {} if qat is None else {"qat": qat}}
    pair: Any = SimpleNamespace(subject=SimpleNamespace(made=made))
    return measure(pair, NoOptions())


def test_curves_come_from_the_log() -> None:
    found = measured(TRAINING, {"freeze_after": 0.75})
    assert (found.steps, found.tokens, found.best_step, found.frozen_from) == (20, 4096, 20, 15)
    assert found.held_out == ((0, 0.6), (10, 0.4), (20, 0.3))
    assert found.loss == ((10, 0.5),)  # what is no number is in no chart
    assert found.drift == ((10, 0.01), (20, 0.03))
    assert found.flipped == ((10, 0.02), (20, 0.05))
    assert measured(TRAINING, {}).frozen_from is None


@pytest.mark.parametrize("training", [None, [], {}, TRAINING | {"steps": "x"}, TRAINING | {"log": [{"loss": 1}]}])
def test_what_was_not_trained_or_is_damaged_has_none(training: Any) -> None:
    assert measured(training, {}) is None
    assert measured(TRAINING) is None


def test_the_page_shows_all_that_were_trained(report: EvalReport) -> None:
    rounded = replace(report, sections={name: each for name, each in report.sections.items() if name != "training"})
    assert panels([rounded]) == []
    (panel,) = panels([rounded, change(report, training={"after": None})])
    assert panel.content.count("<figure") == 4
    for words in ("0.600", "step 15", "4,096"):
        assert words in panel.content
    assert "0.300" not in panel.content.partition("<table")[2]
