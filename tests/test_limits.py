"""Budgets are read from the metrics' files; what importing them says must be the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmquant.errors import RecipeError
from llmquant.eval.metrics import metrics
from llmquant.limits import Limit, check_limits, limits


def test_what_is_read_is_what_is_declared() -> None:
    assert set(limits()) >= {"kl", "perplexity_ratio", "bits_per_weight"}
    declared = {}
    for metric in metrics():
        module = __import__(f"llmquant.eval.metrics.{metric.name}", fromlist=["LIMITS"])
        declared |= {name: Limit(metric.name, *where) for name, where in getattr(module, "LIMITS", {}).items()}
    assert declared == dict(limits())


@pytest.mark.parametrize("declared", ["LIMITS =", "LIMITS: dict[str, tuple[str, str]] ="])
def test_a_declaration_may_have_a_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: str) -> None:
    folder = tmp_path / "eval" / "metrics"
    folder.mkdir(parents=True)
    (folder / "surprise.py").write_text(f'{declared} {{"surprised": ("surprised", "share")}}\nOTHER: int\n')
    monkeypatch.setattr("llmquant.limits.files", lambda _: tmp_path)
    assert limits.__wrapped__() == {"surprised": Limit("surprise", "surprised", "share")}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"klx": 1.0}, "the budgets are"),
        ({"kl": 0.0}, "positive"),
        ({"kl": float("inf")}, "inf"),
        ({"kl": "x"}, "is 'x'; give a positive number"),
        ({"kl": True}, "positive"),
        ({"kl": 10**400}, "positive"),
    ],
)
def test_limits_that_cannot_be_held_are_refused(wanted: dict[str, Any], message: str) -> None:
    check_limits({"kl": 0.1, "bits_per_weight": None})
    with pytest.raises(RecipeError, match=message):
        check_limits(wanted)
