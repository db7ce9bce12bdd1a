"""Names of devices."""

from __future__ import annotations

import pytest
import torch

from llmquant import device
from llmquant.device import resolve_device
from llmquant.errors import DeviceError


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there: dict[str, int] = {}
    monkeypatch.setattr(device, "_count", lambda kind: there.get(kind, 0))
    assert resolve_device() == torch.device("cpu")
    there["mps"] = 1
    assert resolve_device("auto") == torch.device("mps")
    there["cuda"] = 2
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match=r"'cuda:2' here: .* finds 2"):
        resolve_device("cuda:2")
    with pytest.raises(DeviceError, match=r"'xpu' here: .* finds none; give auto"):
        resolve_device("xpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "meta", "lazy"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(DeviceError, match="give auto"):
        resolve_device(name)


def test_the_cpu_has_no_number() -> None:
    assert resolve_device("cpu:1") == torch.device("cpu")


def test_a_device_is_taken_as_it_is() -> None:
    assert resolve_device(torch.device("meta")).type == "meta"
