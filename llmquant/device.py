"""Which device does the work: the words that users say, and what they mean on this machine."""

from __future__ import annotations

import torch

from llmquant.errors import DeviceError

NAMES = ("cuda", "xpu", "mps")  # what `auto` looks for, in this order


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The device of a name, found on this machine.

    Args:
        name: "auto" is the first of cuda, xpu and mps that this machine has, else the CPU; or a device such as "cpu",
            "cuda" or "cuda:1". A `torch.device` is taken as it is.

    Raises:
        DeviceError: if there is no such device here, or torch knows no device of that name.
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        return torch.device(next((kind for kind in NAMES if _count(kind)), "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}; give auto, cpu, {', '.join(NAMES)} or one like cuda:1") from error
    if device.type == "cpu":
        return torch.device("cpu")  # there is one, whatever its number
    if device.type not in NAMES:
        raise DeviceError(f"llmquant does not compute on {name!r}; give auto, cpu, {', '.join(NAMES)}")
    count = _count(device.type)
    if (device.index or 0) >= count:
        found = (
            f"torch {torch.__version__} finds {count} of that kind"
            if count
            else f"torch {torch.__version__} finds none"
        )
        raise DeviceError(f"no device {name!r} here: {found}; give auto, which takes what there is, or cpu")
    return device


def rounding_device(device: torch.device) -> torch.device:
    """Where weights are rounded that are worked on on a device."""
    # Metal has no float64, in which GPTQ factorizes small Hessians and losses are summed.
    return torch.device("cpu") if device.type == "mps" else device


def _count(kind: str) -> int:
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind)
    return module.device_count() if module.is_available() else 0
