"""Models that other tools quantized: who reads them, and what of them only another library computes."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from llmquant.compat.quantizers import METHOD, stays_packed
from llmquant.errors import CheckpointError

# What transformers needs for a `quant_method`, by the names that pip knows; it names one at a time, and late.
_READERS = {
    "gptq": ("optimum", "gptqmodel"), "awq": ("gptqmodel",), "bitsandbytes": ("bitsandbytes",),
    "torchao": ("torchao",), "hqq": ("hqq",), "quanto": ("optimum-quanto",),
}  # fmt: skip


def check_readers(folder: Path, quantization: object) -> None:
    """Refuse a checkpoint for whose `quantization_config` a package is missing, before anything is loaded.

    Raises:
        CheckpointError: with the packages to install.
    """
    if quantization is None:
        return
    if not isinstance(quantization, Mapping):
        raise CheckpointError(
            f"{folder}: quantization_config in config.json is {reprlib.repr(quantization)}, wanted an object with "
            "quant_method; fetch or write the checkpoint again"
        )
    method = quantization.get("quant_method")
    missing = [name for name in _READERS.get(str(method), ()) if not _is_installed(name)]
    if missing:
        raise CheckpointError(
            f"{folder}: is quantized by {method}, which transformers reads with packages that are not installed; "
            f"pip install {' '.join(missing)}"
        )


def _is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def read_by_others(model: nn.Module) -> bool:
    """Whether transformers loaded a quantized model with a quantizer that is not ours."""
    return getattr(model, "hf_quantizer", None) is not None and not stays_packed(model)


def foreign_method(model: nn.Module) -> str | None:
    """The `quant_method` of a model whose weights another library keeps packed; None of any other model.

    Such layers compute in dtypes of their own choice, and what their parameters hold are not the weights one by one.
    Those of compressed-tensors stay packed in our layers, or are dense (see `decompress`).
    """
    if not read_by_others(model):
        return None
    quantizer: Any = model.hf_quantizer
    method = quantizer.quantization_config.quant_method
    name = str(getattr(method, "value", method))
    tensors = (*model.parameters(), *model.buffers())
    return name if name != METHOD and any(map(_is_packed, tensors)) else None


def _is_packed(tensor: Tensor) -> bool:
    return type(tensor.data) is not Tensor or not tensor.is_floating_point() or tensor.itemsize < 2


def decompress(model: nn.Module) -> None:
    """Make the weights dense now that compressed-tensors would make dense at the first forward.

    There it may be in inference mode, whose tensors nothing else can use afterwards.
    """
    if hasattr(model, "ct_decompress_hook"):
        quantizer: Any = model.hf_quantizer
        quantizer.compressor.decompress_model(model)
