"""Who can take part: every peer, or why it is absent. One that cannot be made stays away; the others go on."""

from __future__ import annotations

from collections.abc import Callable

import torch

from llmquant.kernels.bench.gpu_cases import Plan
from llmquant.kernels.bench.gpu_kernel import Peer
from llmquant.kernels.bench.gpu_peers_bitsandbytes import bitsandbytes
from llmquant.kernels.bench.gpu_peers_gemlite import gemlite
from llmquant.kernels.bench.gpu_peers_humming import humming
from llmquant.kernels.bench.gpu_peers_torch import int_mm, tinygemm
from llmquant.kernels.bench.gpu_peers_vllm import vllm

_PEERS: dict[str, Callable[[Plan], Peer]] = {
    "tinygemm": tinygemm,
    "int_mm": int_mm,
    "vllm": vllm,
    "humming": humming,
    "gemlite": gemlite,
    "bitsandbytes": bitsandbytes,
}


def found(plan: Plan) -> list[Peer]:
    """Those that the plan names, in its order."""
    if not torch.cuda.is_available():
        return [Peer(name, absent="no CUDA device") for name in plan.peers]
    return [_made(name, plan) for name in plan.peers]


def _made(name: str, plan: Plan) -> Peer:
    try:
        return _PEERS[name](plan)
    except Exception as error:  # noqa: BLE001 - others' code: whatever it raises must not end the run
        return Peer(name, absent=f"{type(error).__name__}: {error}")
