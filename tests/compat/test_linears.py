"""Which modules a packed linear layer can stand for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4GroupedLinear
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.idefics.modeling_idefics import IdeficsDecoupledLinear
from transformers.pytorch_utils import Conv1D

from llmquant.compat.linears import why_not_linear


class Renamed(nn.Linear):
    """Inherits its forward."""


class Ours(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Twice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * functional.linear(x, self.weight, self.bias)


class NoBias(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return functional.linear(x, self.weight)


class Router(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return logits, logits.argmax(-1)


class Flat(nn.Linear):
    """Linear for one row after the other, other shapes for batches."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return functional.linear(x.flatten(0, -2), self.weight, self.bias)


LINEAR: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(64, 32),
    "Conv1D": lambda: Conv1D(32, 64),
    "inherits": lambda: Renamed(64, 32),
    "Conv1D in other words": lambda: Ours(32, 64),
    "Falcon": lambda: FalconLinear(64, 32),
    "Falcon without bias": lambda: FalconLinear(64, 32, bias=False),
}
OTHER: dict[str, Callable[[], nn.Module]] = {
    "scaled": lambda: Twice(64, 32),
    "drops its bias": lambda: NoBias(64, 32),
    "router": lambda: Router(64, 32),
    "flattens": lambda: Flat(64, 32),
    "grouped": lambda: DeepseekV4GroupedLinear(64, 64, n_groups=4),
    "has more weights": lambda: IdeficsDecoupledLinear(64, 32, 8),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", LINEAR)
def test_linear(name: str, device: str) -> None:
    before = torch.get_rng_state()
    with torch.device(device):
        module = LINEAR[name]()
        state = torch.get_rng_state()
        assert why_not_linear(module) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert {parameter.device.type for parameter in module.parameters()} == {device}
    torch.set_rng_state(before)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", OTHER)
def test_other(name: str, device: str) -> None:
    with torch.device(device):
        module = OTHER[name]()
        assert why_not_linear(module) == f"is a {type(module).__name__}, which computes something else than nn.Linear"


def test_a_bias_that_is_dropped_is_no_matter_where_there_is_none() -> None:
    assert why_not_linear(NoBias(64, 32, bias=False)) is None


def test_hooks_of_an_instance_do_not_count() -> None:
    module = nn.Linear(4, 4)
    module.forward = lambda x: x  # type: ignore[method-assign]
    assert why_not_linear(module) is None


def test_no_linear_layer() -> None:
    assert why_not_linear(nn.Embedding(4, 4)) == "is a Embedding, no linear layer"
