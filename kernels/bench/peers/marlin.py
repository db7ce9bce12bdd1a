"""vLLM's Marlin kernel, called in its compiled library without vLLM's Python.

The library is `vllm/_C_stable_libtorch.abi3.so` of vLLM's wheel (0.25.0 was read), given by path; it needs the torch
that the wheel was built for, or a later one. Arguments and layouts are those of vLLM's own callers
(model_executor/kernels/linear/mixed_precision/marlin.py, _custom_ops.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.bench.common.contender import Kernel
from llmquant.kernels.bench.common.weights import Weight
from llmquant.kernels.bench.peers.humming import modes
from llmquant.numerics.pack import pack, unpack_zeros

# Where scales of a group, and of a channel, go within 64 and 32 outputs of Marlin's tiles.
_GROUPED = [i + 8 * j for i in range(8) for j in range(8)]
_SINGLE = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
_INTERLEAVED = [0, 2, 4, 6, 1, 3, 5, 7]
_SCALE_STEPS = 4096  # the largest scale as an integer, for 8-bit activations


def scalar_type(bits: int, bias: int) -> int:
    """The number by which vLLM's ops know an unsigned integer that stores `value + bias`.

    Fields of vllm/scalar_type.py, lowest first: exponent 8 bits, mantissa 8, signed 1, bias 32, finite-only 1, NaN 8.
    """
    ieee_nan = 1
    return bits << 8 | bias << 17 | ieee_nan << 50


class Marlin(Kernel):
    """vLLM's kernel for Ampere and later; with 8-bit activations its int8 form, fed by vLLM's own quantization.

    The library has it for Hopper as PTX in part, which the driver compiles when it is first called, and keeps.
    """

    multiples = (64, 128)

    def __init__(self, mode: str) -> None:
        super().__init__("marlin", mode)
        self._int8 = mode == "int8"

    def prepare(self, weight: Weight) -> tuple[Any, ...]:
        """(weight, scales, zeros, scale of the scales, nothing, workspace, type, n)."""
        ops, (n, k), bits = torch.ops._C, (weight.shape.n, weight.shape.k), weight.scheme.bits
        empty = torch.empty(0, dtype=torch.int32, device=weight.packed.device)
        # A word of ours holds codes along the inputs, lowest first, as GPTQ has it; only the matrix is transposed.
        words = ops.gptq_marlin_repack(weight.packed.t().contiguous(), empty, k, n, bits, self._int8)
        grouped = weight.group < k and not self._int8
        scales, whole = marlin_scales(weight.scale.t().contiguous(), grouped), None
        if self._int8:
            whole = (weight.scale.max().float() / _SCALE_STEPS).reshape(1)
            scales = (scales.float() / whole).round().to(torch.int16).view(weight.scale.dtype)
        zeros, kind = empty, scalar_type(bits, 1 << bits - 1)
        if weight.zero is not None:
            zeros, kind = marlin_zeros(unpack_zeros(weight.zero, bits, n)), scalar_type(bits, 0)
        processors = torch.cuda.get_device_properties(weight.packed.device).multi_processor_count
        workspace = torch.zeros(processors, dtype=torch.int32, device=weight.packed.device)
        return words, scales, zeros, whole, empty, workspace, kind, n

    def call(self, x: Tensor, prepared: Any) -> Tensor:
        """The product; float32 sums, no atomics, which are vLLM's defaults."""
        words, scales, zeros, whole, empty, workspace, kind, n = prepared
        (m, k), steps = x.shape, None
        if self._int8:
            x, steps = _quantized(x)
            steps = steps * whole
        return torch.ops._C.marlin_gemm(
            x, None, words, None, scales, steps, None, zeros, empty, empty, workspace, kind, m, n, k,
            True, False, True, False,
        )  # fmt: skip


def marlin_scales(scales: Tensor, grouped: bool) -> Tensor:
    """Scales (groups, n) in the order that Marlin's threads read them."""
    order = _GROUPED if grouped else _SINGLE
    return scales.reshape(-1, len(order))[:, order].reshape(scales.shape).contiguous()


def marlin_zeros(zeros: Tensor) -> Tensor:
    """Signed 4-bit zeros (n, groups) in Marlin's order, packed along the outputs."""
    ordered = marlin_scales(zeros.t().contiguous(), grouped=True)
    return pack(ordered.reshape(-1, 8)[:, _INTERLEAVED].reshape(ordered.shape).contiguous(), 4)


def _quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows and their scales (m, 1), by vLLM's kernel."""
    rounded = torch.empty_like(x, dtype=torch.int8)
    steps = torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)
    torch.ops._C.dynamic_scaled_int8_quant(rounded, x, steps, None)
    return rounded, steps


def loaded(library: str | None) -> Callable[[Weight], list[Kernel]]:
    """What gives Marlin, of the file `library`, for a weight; W8A8 is for another kernel of vLLM's.

    Raises:
        OSError, RuntimeError: if it is not there, or does not fit this torch.
    """
    if library is None or not Path(library).is_file():
        raise OSError("no --vllm-library" if library is None else f"{library} is no file")
    torch.ops.load_library(library)
    return lambda weight: [] if weight.scheme.activations is not None else [Marlin(mode) for mode in modes(weight)]
