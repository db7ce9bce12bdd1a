"""Chunks on several threads give what one thread gives, and leave torch's settings as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from llmquant.numerics.grid import choose_grid, round_to_grid
from llmquant.numerics.threads import map_chunks, one_thread
from llmquant.spec import Scheme

CPU = torch.device("cpu")


@pytest.fixture
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_three_threads")
def test_operations_run_on_one_core_without_gradients() -> None:
    def look(item: int) -> tuple[int, int, bool]:
        return item, torch.get_num_threads(), torch.is_grad_enabled()

    assert map_chunks(look, range(7), CPU) == [(item, 1, False) for item in range(7)]
    assert map_chunks(look, [5], CPU) == [(5, 3, False)]
    assert torch.get_num_threads() == 3
    assert torch.is_grad_enabled()


@pytest.mark.usefixtures("_three_threads")
def test_settings_survive_an_error() -> None:
    def fail(item: int) -> None:
        raise KeyError(item)

    with pytest.raises(KeyError):
        map_chunks(fail, range(4), CPU)
    with pytest.raises(KeyError), one_thread():
        fail(torch.get_num_threads())
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("_three_threads")
@pytest.mark.parametrize("name", ["int4-g16-asym", "int3", "int4-tensor"])
def test_grids_do_not_depend_on_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme, weight = Scheme.parse(name), torch.randn(40, 64, requires_grad=True)
    monkeypatch.setattr("llmquant.numerics.threads._CPU_CHUNK", 200)
    parallel = choose_grid(weight, scheme, scale_dtype=torch.bfloat16, objective="mse")
    codes = round_to_grid(weight, parallel, scheme)
    torch.set_num_threads(1)
    serial = choose_grid(weight, scheme, scale_dtype=torch.bfloat16, objective="mse")
    assert torch.equal(parallel.scales, serial.scales)
    assert torch.equal(codes, round_to_grid(weight, serial, scheme))
