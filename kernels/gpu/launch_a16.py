"""From tensors to launches of the kernel in linear_a16.py."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.gpu.choose.config import Config
from llmquant.kernels.gpu.compiling import Parts, Target, constants, options, parts_of, target
from llmquant.kernels.gpu.weight import TILE_K, Format
from llmquant.kernels.gpu.work import MOST_PARTS, share_work
from llmquant.kernels.product import Product


def linear_a16(x: Tensor, product: Product, *, config: Config, out_dtype: torch.dtype) -> list[Tensor]:
    """Prepared weights times x (m, in_features) as it is; its inputs are contiguous, and there are rows.

    The product is checked by the caller, its norm applied, and its residual (m, out_features).
    """
    from llmquant.kernels.gpu.triton.linear_a16 import linear_a16 as kernel

    has, m = Format.read(product.form), x.shape[0]
    work = share_work(x, product, config, out_dtype)
    kernel[work.grid](
        x,
        *work.tensors,
        m,
        has.in_features,
        x.stride(0) if m > 1 else has.in_features,
        *work.sizes,
        **_compile_time(has, config, x.dtype, parts_of(product), target()),
    )
    return work.outs


@lru_cache(maxsize=4096)
def _compile_time(has: Format, config: Config, dtype: torch.dtype, parts: Parts, where: Target) -> dict[str, Any]:
    """Everything that the compiler sees; kept, since each call of a layer asks."""
    return {
        **constants(has, config, parts, where),
        "BITS": has.word_bits,
        "EVEN_K": has.in_features % TILE_K == 0,
        "ASM": where.asm and dtype != torch.float32,
        **options(config, where),
        **_registers(has, config, parts.weights, where),
    }


def _registers(has: Format, config: Config, parts: int, where: Target) -> dict[str, int]:
    """A limit where the compiler takes more registers than it needs, so that one program more fits on a processor."""
    wider = {4: 128, 8: 256}.get(config.warps)
    plain = not has.asymmetric and parts < MOST_PARTS and not 0 < has.unit < TILE_K
    return {"maxnreg": 128} if where.asm and plain and (config.block_m, config.block_n) == (16, wider) else {}
