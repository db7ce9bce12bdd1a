"""Refuse values that no integer grid can hold, with a message that says where they are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from llmquant.errors import QuantizationError


def require_finite(tensor: Float[Tensor, "*shape"], name: str) -> None:
    """Refuse NaN and infinities.

    Raises:
        QuantizationError: calls it `name`, says how many values are not finite, and which is the first of them.
    """
    if tensor.numel() == 0:
        return
    # aminmax lets NaN through and needs no memory; the slow search below runs only on failure.
    low, high = torch.aminmax(tensor)
    if bool(torch.isfinite(low)) and bool(torch.isfinite(high)):
        return
    bad = (~torch.isfinite(tensor)).nonzero()
    first = tuple(bad[0].tolist())
    raise QuantizationError(
        f"{name} holds {len(bad)} values that are NaN or infinite out of {tensor.numel()}, the first at {list(first)} "
        f"({tensor[first].item()}); all must be finite: repair the tensor, or keep it in 16 bit"
    )
