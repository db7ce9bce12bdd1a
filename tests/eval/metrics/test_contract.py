"""What every file of `llmquant.eval.metrics` promises; a new one is found here by itself."""

from __future__ import annotations

import dataclasses
from operator import attrgetter

import pytest

from llmquant.errors import RecipeError
from llmquant.eval.metrics import find, metrics
from llmquant.eval.metrics.base import Cell, Metric, Panel, Section
from llmquant.eval.result import EvalReport
from llmquant.limits import limits


@pytest.mark.parametrize("metric", metrics(), ids=lambda metric: metric.name)
def test_contract(metric: Metric, report: EvalReport) -> None:
    assert issubclass(metric.section, Section)
    assert metric.section.metric() == metric.name
    assert dataclasses.is_dataclass(metric.section)
    metric.options()  # every option has a default
    assert all(isinstance(panel, Panel) for panel in metric.panels([report]))
    empty = dataclasses.replace(report, sections={})
    assert list(metric.panels([empty])) == []
    assert list(metric.tables([empty])) == []
    section = report.sections.get(metric.name)
    if section is None:
        assert not metric.by_default
        return
    assert isinstance(section, metric.section)
    for column in metric.columns(section, report):
        assert column.note
        assert isinstance(column.baseline, Cell)
        assert isinstance(column.quantized, Cell)
    for limit in (each for each in limits().values() if each.metric == metric.name):
        assert getattr(attrgetter(limit.path)(section), "value", 1.0) is not None


def test_metrics_are_found_in_their_order() -> None:
    shipped = ["memory", "noise_floor", "perplexity", "divergence", "speed", "anatomy", "layers", "worst"]
    assert [metric.name for metric in metrics() if metric.name in shipped] == shipped
    with pytest.raises(RecipeError, match="did you mean 'divergence'"):
        find("divergense")
