"""gemlite (0.6.0 was read): Triton kernels with a table of configurations for H100, and tuning at the first call.

Tuning takes minutes, so only shapes in its table are timed, unless the plan says otherwise. On H200, for which it has
no table, the one for H100 is loaded. That has 2 to 63 rows under GEMM_SPLITK only, which is called for them by name.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.bench.contender import Shape
from llmquant.kernels.bench.gpu_cases import Plan
from llmquant.kernels.bench.gpu_kernel import Kernel, Peer
from llmquant.kernels.bench.gpu_weights import Weight, random_weight
from llmquant.numerics.pack import unpack_zeros
from llmquant.spec import Scheme

_FORMS = ("W4A16-g128", "W4A16-g128-asym", "W8A8")
_PER_WORD = {4: 8, 8: 1}  # codes that it puts into one element
_TYPES = {4: 104, 8: 408}  # of its table: float16 or bfloat16 with 4 bits, int8 with 8


class Gemlite(Kernel):
    """Its kernel for one format; for W8A8 its own quantization of rows is part of it."""

    compiles = "layer"

    def __init__(self, form: str, tune: bool) -> None:
        super().__init__("gemlite", form)
        self._tune = tune

    def why_not(self, shape: Shape, m: int) -> str | None:
        """What is not in its table."""
        if self._tune or self._tuned(shape, m):
            return None
        return "no configuration for this case; --tune-peers lets it look for one"

    def prepare(self, weight: Weight) -> tuple[Any, ...]:
        """Its tensors, and its list of numbers."""
        from gemlite import DType, GemLiteLinear
        from gemlite.dtypes import TORCH_TO_DTYPE
        from gemlite.helper import A8W8_int8_dynamic

        dtype, shape = weight.scale.dtype, weight.shape
        if weight.scheme.bits == 8:
            layer = A8W8_int8_dynamic(weight.packed.device, dtype).from_weights(weight.codes, None, weight.scale)
        else:
            float_type: DType = TORCH_TO_DTYPE[dtype]
            layer = GemLiteLinear(4, weight.group, shape.k, shape.n, float_type, float_type)
            zeros: Tensor | int = 8
            if weight.zero is not None:
                zeros = (unpack_zeros(weight.zero, 4, shape.n) + 8).to(dtype)
            layer.pack((weight.codes + 8).view(torch.uint8), weight.scale, zeros)
        tensors = tuple(tensor.detach() for tensor in layer.get_tensor_args())
        return tensors, [int(number) for number in layer.get_meta_args()]

    def call(self, x: Tensor, prepared: Any) -> Tensor:
        """The product."""
        from gemlite.core import GEMLITE_MATMUL_TYPES_MAPPING, forward_functional

        tensors, numbers = prepared
        kernel = GEMLITE_MATMUL_TYPES_MAPPING["GEMM_SPLITK"] if 1 < x.shape[0] < 64 else -1
        return forward_functional(x, None, list(tensors), numbers, kernel)

    def compile(self, shape: Shape, batches: Sequence[int]) -> None:
        """Into Triton's cache, by calls."""
        prepared = self.prepare(random_weight(Scheme.parse(self.format.scheme), shape, "cuda"))
        for m in batches:
            self.call(torch.zeros(m, shape.k, dtype=torch.bfloat16, device="cuda"), prepared)

    def _tuned(self, shape: Shape, m: int) -> bool:
        from gemlite.core import GEMLITE_TRITON_CONFIG_CACHE, get_matmul_type
        from gemlite.triton_kernels.utils import get_closest_m

        bits = 8 if self.form == "W8A8" else 4
        kernel = "GEMM_SPLITK" if 1 < m < 64 else get_matmul_type(m, bits)
        group = shape.k if bits == 8 else 128
        key = str((get_closest_m(m), shape.n, shape.k, group, _PER_WORD[bits], _TYPES[bits]))
        return key in GEMLITE_TRITON_CONFIG_CACHE.get(kernel, {})


def gemlite(plan: Plan) -> Peer:
    """gemlite, for the formats that its table has."""
    spec = find_spec("gemlite")
    if spec is None or spec.origin is None:
        return Peer("gemlite", absent="gemlite is not installed")
    try:
        from gemlite.core import GEMLITE_TRITON_CONFIG_CACHE, GemLiteLinear
    except (ImportError, OSError, RuntimeError) as error:
        return Peer("gemlite", absent=f"{type(error).__name__}: {error}")
    if not GEMLITE_TRITON_CONFIG_CACHE and torch.cuda.get_device_capability() == (9, 0):
        GemLiteLinear.load_config(str(Path(spec.origin).parent / "configs" / "h100.json"))
    return Peer("gemlite", tuple(Gemlite(form, plan.tune_peers) for form in plan.formats if form in _FORMS))
