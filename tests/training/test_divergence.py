"""What the watch on a model keeps, and that it goes."""

import pytest
import torch

from llmquant.errors import QuantizationError
from llmquant.training.divergence import Watch
from tests.training.conftest import prepared


def step(model, tokens: torch.Tensor) -> None:
    model(tokens, labels=tokens).loss.backward()


def test_scales_that_overflow_and_hooks_that_go() -> None:
    model = prepared().train()
    watch, tokens = Watch(model), torch.arange(8)[None]
    step(model, tokens)
    watch.check(model, 1, "")
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight_scale_change[1, 1] = 100.0
    step(model, tokens)
    with pytest.raises(QuantizationError, match=r"step 2: .* scales of model\.layers\.0\.mlp\.gate_proj are not"):
        watch.check(model, 2, "")
    watch.remove()
    assert not model._forward_pre_hooks
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
