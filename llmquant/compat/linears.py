"""Which modules a packed linear layer can stand for: one rule for the planner and for the loader.

Models subclass nn.Linear for many reasons. Some subclasses compute what nn.Linear computes in other words (Falcon),
others route tokens, multiply group by group, or return tuples. The name does not tell; a try with small numbers does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_WIDE, _NARROW = 12, 8  # of the try; different, so that a transposed product is an error


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D, a linear layer with a transposed weight, or a subclass of it."""
    return isinstance(module, _conv1d())


def is_linear(module: nn.Module) -> bool:
    """Whether a module is an nn.Linear or a Conv1D or a subclass, whatever it computes."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def why_not_linear(module: nn.Module) -> str | None:
    """Why no packed linear layer can stand for a module.

    Its weights are not looked at and may be on meta. None if it computes `x @ weight.T + bias` as nn.Linear does; else
    the reason, to follow its name.
    """
    kind = type(module)
    if not is_linear(module):
        return f"is a {kind.__name__}, no linear layer"
    if kind.forward is (_conv1d() if is_conv1d(module) else nn.Linear).forward:
        return None
    with torch.no_grad(), torch.device("cpu"):  # the caller may be building a model on meta
        if _computes_linear(module):
            return None
    return f"is a {kind.__name__}, which computes something else than nn.Linear"


def _conv1d() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D  # which imports half of transformers

    return Conv1D


def _computes_linear(module: nn.Module) -> bool:
    """Whether the forward of a subclass gives what nn.Linear gives, tried on a narrow copy with weights of its own."""
    numbers = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=numbers)

    weight, turned = some(_NARROW, _WIDE), is_conv1d(module)
    bias = None if module._parameters.get("bias") is None else nn.Parameter(some(_NARROW))
    narrow = object.__new__(type(module))
    narrow.__dict__.update(module.__dict__)
    narrow.__dict__["_parameters"] = {"weight": nn.Parameter(weight.T if turned else weight), "bias": bias}
    names = ("nf", "nx") if turned else ("out_features", "in_features")
    narrow.__dict__.update(zip(names, (_NARROW, _WIDE), strict=True))
    for shape in ((2, 3, _WIDE), (5, _WIDE)):
        x = some(*shape)
        try:
            result = type(module).forward(narrow, x)  # not the instance's own, which may be a hook's
        except Exception:  # noqa: BLE001 - other people's code, which may count on other widths
            return False
        wanted = functional.linear(x, weight, bias)
        if not isinstance(result, Tensor) or result.shape != wanted.shape or not torch.allclose(result, wanted):
            return False
    return True
