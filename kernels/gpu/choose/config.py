"""`Config`: how a kernel cuts a product into blocks. Which one runs when is decided in dispatch.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Config:
    """A launch of the kernels in linear_a16.py and linear_a8.py."""

    block_m: int  # rows of activations of a program: 16, 32, 64, 128 or 256
    block_n: int  # outputs of a program: 64, 128 or 256
    split_k: int = 1  # programs that share one block of the result, each with a part of the inputs
    warps: int = 4
    stages: int = 4  # depth of the software pipeline
    pdl: bool = False  # start before the kernel in front has ended (programmatic dependent launch, sm_90 and later)


#: Dequantize into a dense weight, and let the library multiply: what wins for many rows.
DENSE = Config(0, 0)
