"""humming-kernels (0.1.19 was read): compiled by NVRTC for each layer and range of rows, chosen by its own tables.

Its layer compiles what its tables name for every number of rows at the first call. Here the entry for one number of
rows is looked up in those tables and given to it, so that only what is timed is compiled.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.bench.common.contender import Kernel
from llmquant.kernels.bench.common.weights import Weight

_TENSORS = ("weight", "weight_scale", "zero_point", "weight_scale_2", "locks")


class Humming(Kernel):
    """Its dense product ("bf16"); with 8-bit activations ("int8") its own quantization of rows is part of it."""

    multiples = (64, 128)

    def __init__(self, mode: str) -> None:
        super().__init__("humming", mode)
        self._tuned: dict[tuple[str, int], str] = {}

    def prepare(self, weight: Weight) -> tuple[Any, ...]:
        """Its tensors, and what it calls the layer's configuration."""
        from humming.layer import HummingLayer

        scheme, shape = weight.scheme, weight.shape
        wanted = {"dtype": f"int{scheme.bits}", "group_size": 0 if scheme.group_size is None else scheme.group_size}
        if weight.zero is not None:
            wanted["has_zero_point"] = True
        given = {"dtype": "int8"} if self.mode == "int8" else None
        with torch.device(weight.packed.device):
            layer = HummingLayer(shape.n, shape.k, wanted, given, torch_dtype=weight.scale.dtype)
        # Packed as in the checkpoint: it stores `code + 8` too, along the inputs, and zeros along the outputs.
        tensors = {"weight": weight.packed, "weight_scale": weight.scale, "zero_point": weight.zero}
        layer.load_from_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None})
        layer.transform()
        found = (getattr(layer, name, None) for name in _TENSORS)
        return *(None if tensor is None else tensor.detach() for tensor in found), layer.humming_config

    def call(self, x: Tensor, prepared: Any) -> Tensor:
        """The product."""
        from humming.forward import humming_forward

        weight, scale, zero, scale_2, locks, config = prepared
        return humming_forward(
            config,
            inputs=x,
            weight=weight,
            weight_scale=scale,
            zero_point=zero,
            weight_scale_2=scale_2,
            locks=locks,
            tuning_config=self._tuning(config, x.shape[0]),
        )

    def _tuning(self, config: Any, m: int) -> str:
        from humming.tune import get_heuristics_config

        key = (config.to_str(), m)
        if key not in self._tuned:
            self._tuned[key] = json.dumps(get_heuristics_config(config, m))
        return self._tuned[key]


def loaded() -> Callable[[Weight], list[Kernel]]:
    """What gives its kernels for a weight.

    Raises:
        ImportError, OSError, RuntimeError: if it is not installed, or cannot run.
    """
    # Else its import starts processes that compile what the wheel has, and would disturb the first measurements.
    os.environ.setdefault("HUMMING_DISABLE_PARALLEL_BUILD", "1")
    import humming.layer  # noqa: F401
    from humming.utils.nvrtc import get_nvrtc_library_path

    folder = os.path.dirname(get_nvrtc_library_path())
    # Its compiling processes load NVRTC by path; what NVRTC loads in turn, the system has to find.
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join((folder, os.environ.get("LD_LIBRARY_PATH", "")))
    return lambda weight: [Humming(mode) for mode in modes(weight)]


def modes(weight: Weight) -> tuple[str, ...]:
    """What it computes of a weight: 8-bit activations only where their blocks are as long as ours."""
    if weight.scheme.activations is not None:
        return ("int8",)
    return ("bf16", "int8") if weight.scheme.name == "int4-g128" else ("bf16",)
