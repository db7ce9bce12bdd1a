"""Losses of layers: what they are of, and that the two kinds are not in one scale."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from llmquant.eval.metrics.base import NoOptions
from llmquant.eval.metrics.layers import Section, measure, panels
from llmquant.eval.result import EvalReport
from tests.eval.conftest import change

LAYERS = {
    "a.0.x": {"loss": 1e-4, "method": "gptq"},
    "a.1.x": {"loss": 1e-2, "method": "rtn"},
    "a.2.x": {"loss": 1e-3, "method": "methods/mine.py"},
}


@pytest.mark.parametrize(
    ("calibration", "of_weights"), [({"samples": 2}, ("a.1.x",)), (None, ("a.0.x", "a.1.x", "a.2.x"))]
)
def test_a_method_that_sees_no_inputs_tells_of_weights(calibration: Any, of_weights: tuple[str, ...]) -> None:
    pair: Any = SimpleNamespace(subject=SimpleNamespace(made={"layers": LAYERS, "calibration": calibration}))
    found = measure(pair, NoOptions())
    assert found == Section({"a.0.x": 1e-4, "a.1.x": 1e-2, "a.2.x": 1e-3}, of_weights)


def test_outputs_and_weights_have_a_scale_each(report: EvalReport) -> None:
    losses = {"a.0.x": 1e-4, "a.1.x": 2e-4, "a.2.x": 0.01, "a.3.x": 0.02, "lm_head": 0.5}
    shown = change(report, layers={"losses": losses, "of_weights": ("a.2.x", "a.3.x", "lm_head")})
    (panel,) = panels([shown])
    assert re.findall(r"Relative error of ([\w ]+): <", panel.content) == ["outputs", "weights"]
    assert re.findall(r'class="scale">([\d.]+)<.*?</span>([\d.]+)</span>', panel.content) == [
        ("0.000100", "0.000200"),
        ("0.0100", "0.0200"),
    ]
    assert "lm_head 0.500" in panel.content.partition("error of weights")[2]
    (panel,) = panels([change(report, layers={"losses": losses, "of_weights": None})])
    assert re.findall(r"Relative error of ([\w ]+): <", panel.content) == ["outputs or weights"]
