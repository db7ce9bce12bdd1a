"""The order in which GPTQ rounds the inputs of a layer.

Grids belong to the original groups whatever the order ("static groups"), so no order leaves a trace in the file.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Order = Literal["static", "group", "none"]


def processing_order(importance: Float[Tensor, " in"], groups: int, order: Order) -> Int64[Tensor, " in"]:
    """Which input is rounded first, second, and so on; ties keep the order in memory.

    Args:
        importance: diagonal of the Hessian.
        groups: groups in a row.
        order: "static" sorts all inputs, the most important first: their errors are spread over the most others.
            "group" keeps groups together: it sorts the groups by their largest importance, and the inputs inside each
            (group-aware reordering, arXiv:2505.14638). "none" is the order in memory.
    """
    if order == "none":
        return torch.arange(len(importance), device=importance.device)
    if order == "static":
        return torch.sort(importance, descending=True, stable=True).indices
    grouped = importance.view(groups, -1)
    within = torch.sort(grouped, dim=1, descending=True, stable=True).indices
    between = torch.sort(grouped.amax(1), descending=True, stable=True).indices
    starts = torch.arange(groups, device=importance.device).unsqueeze(1) * grouped.shape[1]
    return (within + starts)[between].flatten()
