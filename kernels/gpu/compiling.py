"""What the compiler is told of a launch: constants of the kernels, and options of Triton."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch

from llmquant.kernels.gpu import runtime
from llmquant.kernels.gpu.choose.config import Config
from llmquant.kernels.gpu.weight import Format
from llmquant.kernels.product import Product


class Target(NamedTuple):
    """What decides how kernels are compiled, beside their arguments: a key of whatever keeps such decisions."""

    interpreting: bool
    hip: bool  # AMD

    @property
    def asm(self) -> bool:
        """Whether kernels use inline PTX."""
        return not (self.interpreting or self.hip)

    def overlaps(self, config: Config) -> bool:
        """Whether a launch begins before the one in front has ended; AMD's compiler does not know of it."""
        return config.pdl and not self.hip


def target() -> Target:
    return Target(runtime.interpreting(), torch.version.hip is not None)


def options(config: Config, where: Target, *, fused: bool = True) -> dict[str, Any]:
    """How Triton shall compile a launch.

    `fused` says whether a multiply and an add may become one: not in what has the bits of a definition, which a fused
    multiply-add would round once less.
    """
    chosen: dict[str, Any] = {"num_warps": config.warps, "num_stages": config.stages}
    if where.interpreting:
        return chosen
    return chosen | {"enable_fp_fusion": fused} | ({"launch_pdl": True} if where.overlaps(config) else {})


class Parts(NamedTuple):
    """What the compiler sees of a product: how many weights, and whether there is each of the rest."""

    weights: int
    silu: bool
    bias: bool
    residual: bool


def parts_of(product: Product) -> Parts:
    return Parts(len(product.weights), product.silu, bool(product.biases), product.residual is not None)


def constants(has: Format, config: Config, parts: Parts, where: Target) -> dict[str, Any]:
    """The compile-time arguments that all kernels of prepared weights have."""
    return {
        "UNIT": has.unit,
        "ASYMMETRIC": has.asymmetric,
        "SCALE": triton_dtype(has.scale_dtype),
        "PARTS": parts.weights,
        "SILU": parts.silu,
        "BIAS": parts.bias,
        "RESIDUAL": parts.residual,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "SPLIT_K": config.split_k,
        "ASM": where.asm,
        "PDL": where.overlaps(config),
    }


@cache
def triton_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return getattr(tl, str(dtype).removeprefix("torch."))
