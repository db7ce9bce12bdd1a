"""How a launch is cut: its grid, room for the sums of split-K, and what kernels of prepared weights are given alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmquant.kernels.gpu import counters, runtime
from llmquant.kernels.gpu.choose.config import Config
from llmquant.kernels.product import Product

MOST_PARTS = 3

Grid = tuple[int, int, int]


class Work(NamedTuple):
    """A launch of a kernel of prepared weights, whose arguments are in the kernels' order."""

    grid: Grid
    tensors: list[Tensor]  # weights, biases, residual, results, room for partial sums, counters
    sizes: list[int]  # outputs of each weight
    outs: list[Tensor]  # the results alone


def question(kind: str, device: torch.device, m: int, n: int, k: int, unit: int) -> dict[str, Any]:
    """The arguments of dispatch.choose for a product on a device."""
    arch, processors = runtime.arch(device), runtime.processors(device)
    return {"arch": arch, "kind": kind, "m": m, "n": n, "k": k, "unit": unit, "processors": processors}


def share_work(x: Tensor, product: Product, config: Config, out_dtype: torch.dtype) -> Work:
    """Allocate results, and name every argument three times: what there is less of is a stand-in that nobody reads."""
    weights, biases, out_features, _, _, _, residual, silu, _ = product
    outs = product.empty(x, out_dtype)
    results = len(outs)
    grid, partials, arrivals = split_work(x, config, out_features, silu, torch.float32)
    places = [*range(len(weights)), *[0] * (MOST_PARTS - len(weights))]
    tensors = [
        *(weights[place] for place in places),
        *(biases[place] if biases else x for place in places),
        x if residual is None else residual,
        *(outs[place if place < results else 0] for place in places),
        partials,
        arrivals,
    ]
    return Work(grid, tensors, [out_features[place] for place in places], outs)


def split_work(
    x: Tensor, config: Config, out_features: Sequence[int], silu: bool, dtype: torch.dtype
) -> tuple[Grid, Tensor, Tensor]:
    """The grid of a launch, and what split-K needs: room for partial sums, and counters that are zero.

    With `silu` two weights share their blocks; the sums are of `dtype`.
    """
    if silu:
        tiles = -(-out_features[0] // (config.block_n // 2))
    else:
        tiles = sum(-(-n // config.block_n) for n in out_features)
    across = -(-x.shape[0] // config.block_m)
    grid = (across, tiles, config.split_k)
    if config.split_k == 1:
        return grid, x, x
    size = across * tiles * config.split_k * config.block_m * config.block_n
    return grid, x.new_empty(size, dtype=dtype), counters.counters_for(x.device, across * tiles)
