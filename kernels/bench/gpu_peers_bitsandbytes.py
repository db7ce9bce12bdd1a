"""bitsandbytes (0.50 was read): NF4, blocks of 64. Other numbers than ours, of about as many bits."""

# pyright: reportMissingImports=false
from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.bench.gpu_cases import Plan
from llmquant.kernels.bench.gpu_kernel import Kernel, Peer
from llmquant.kernels.bench.gpu_peers_torch import dense
from llmquant.kernels.bench.gpu_weights import Weight

_FORM, _BLOCK = "W4A16-g128", 64


class Nf4(Kernel):
    """bitsandbytes.matmul_4bit of a weight that it quantized again, which its error shows."""

    requantizes = True

    def __init__(self) -> None:
        super().__init__("bitsandbytes", _FORM, "nf4-b64")

    def prepare(self, weight: Weight) -> tuple[Any, ...]:
        """(codes, scales of blocks, n, k)."""
        from bitsandbytes.functional import quantize_4bit

        codes, state = quantize_4bit(dense(weight), blocksize=_BLOCK, quant_type="nf4")
        return codes, state.absmax, weight.shape.n, weight.shape.k

    def call(self, x: Tensor, prepared: Any) -> Tensor:
        """The product."""
        codes, scales, n, k = prepared
        return torch.ops.bitsandbytes.gemm_4bit.default(x, codes.view(-1, 1), [n, k], scales, _BLOCK, "nf4", bias=None)


def bitsandbytes(plan: Plan) -> Peer:
    """bitsandbytes, beside W4A16-g128."""
    if find_spec("bitsandbytes") is None:
        return Peer("bitsandbytes", absent="bitsandbytes is not installed")
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return Peer("bitsandbytes", absent=f"{type(error).__name__}: {error}")
    return Peer("bitsandbytes", (Nf4(),) if _FORM in plan.formats else ())
