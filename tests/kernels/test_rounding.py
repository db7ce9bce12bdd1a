"""What rounds a block of GPTQ where."""

from __future__ import annotations

import pytest
import torch

from llmquant.kernels import rounding
from llmquant.kernels.cpu import native
from llmquant.kernels.gpu import runtime
from llmquant.kernels.ops.round_block import Columns


@pytest.mark.parametrize(("fast", "interpret"), [(False, False), (True, False), (True, True)])
def test_the_fastest_that_may_run_is_used(monkeypatch: pytest.MonkeyPatch, fast: bool, interpret: bool) -> None:
    monkeypatch.setattr(native, "wanted", lambda: fast)
    monkeypatch.setattr(runtime, "interpreting", lambda: interpret)
    called = []
    for module in (rounding.cpu, rounding.gpu, rounding.definition):
        monkeypatch.setattr(module, "round_block", lambda *_, name=module.__name__: called.append(name))
    ones = torch.ones(2, 3)
    columns = Columns(ones, None, -8, 7, torch.float32)
    rounding.round_block(ones, ones, torch.ones(2, 2), torch.zeros(2).long(), columns, ones.char())
    assert called == [(rounding.gpu if interpret else rounding.cpu if fast else rounding.definition).__name__]
