"""What a scale becomes when it is stored: cast to its dtype, and never zero."""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

SCALE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The smallest magnitude of a scale. Below 1e-5 a float16 scale would keep under 8 bits of its value; the others stay
# out of the subnormal numbers, which kernels may flush to zero.
SMALLEST_SCALE = {torch.float16: 1e-5, torch.bfloat16: 2.0**-126, torch.float32: 2.0**-126}


def as_stored(scale: Float32[Tensor, "*shape"], dtype: torch.dtype) -> Float32[Tensor, "*shape"]:
    """The value that a reader of the stored scale sees.

    It is `scale` rounded to `dtype`, one of `SCALE_DTYPES`, and at least `SMALLEST_SCALE[dtype]` in magnitude (0 counts
    as positive). Infinite where `dtype` cannot hold it.
    """
    floor = torch.full_like(scale, SMALLEST_SCALE[dtype])
    kept = torch.where(scale.abs() < floor, torch.copysign(floor, scale), scale)
    return kept.to(dtype).float()
