"""What is watched of large layers."""

import pytest
import torch

from llmquant.hf.qat import fake_layers
from llmquant.training import movement
from tests.training.conftest import prepared


@pytest.mark.parametrize("scheme", ["int4-g32", "int8", "int4-tensor", "int3-g16-asym"])
def test_rows_at_equal_distances_stand_for_all(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movement, "_WATCHED", 1 << 10)
    model = prepared(scheme=scheme)
    watched = movement.Movement(model)
    assert not any(value for key, value in watched.facts(model).items() if key != "dead_zone")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.5) if "scale_change" in name else parameter.mul_(-1)
    facts = watched.facts(model)
    assert facts["codes_flipped"] > 0.5
    assert facts["scale_drift"] == pytest.approx(0.5, abs=0.01)
    layer = next(iter(fake_layers(model).values()))
    assert movement._now(layer)[0].shape == (16, 64)
