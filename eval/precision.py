"""How a model computes while its loss is measured: float32 over exactly the stored weights, where it fits.

In bfloat16 the rounding of activations alone moves an 8-bit model as far as its weights do, so a loss measured there is
half noise. `in_float32` takes that noise away and leaves the weights alone: what is stored in 16 bits becomes float32
without rounding; packed weights keep their scales, and are what plain readers make of them: `scale * (code - zero)` in
the dtype of the scale.

The fast kernels of the CPU quantize activations inside: `exact` to 16 bits, whose error is far below that of bfloat16,
`fast` to 8 bits. A loss is that of the weights' format only if it is measured in `exact`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from llmquant.compat.foreign_layers import foreign_method
from llmquant.kernels.cpu import native
from llmquant.kernels.cpu.native import KERNELS_VARIABLE
from llmquant.kernels.gpu import runtime
from llmquant.memory import free_bytes
from llmquant.nn.accuracy import Accuracy, set_accuracy
from llmquant.nn.embedding import PackedEmbedding
from llmquant.nn.storage import PackedStorage
from llmquant.words import dtype_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Wanted = Literal["auto", "checkpoint"]

_SPARE = 0.85  # share of the free memory that the wider weights may take; the rest is for activations


def widening_bytes(model: nn.Module) -> int:
    """Memory that a model takes on top in float32; its packed weights stay packed, but for tables of embeddings."""
    rows = sum(4 * table.num_embeddings * table.embedding_dim for _, _, table in _tables(model))
    return rows + sum((4 - tensor.itemsize) * tensor.numel() for tensor in _narrow_tensors(model))


def is_narrow(model: nn.Module) -> bool:
    """Whether a model computes in less than float32 anywhere."""
    return bool(_narrow_tensors(model) or _tables(model))


def fits_float32(models: Iterable[nn.Module], device: torch.device) -> bool:
    """Whether all models fit into memory at once in float32; True where nothing tells how much there is."""
    free = free_bytes(device)
    return free is None or sum(map(widening_bytes, models)) <= _SPARE * free


@dataclass(frozen=True, slots=True)
class LossDtype:
    """In which dtype a loss is measured, and why, in words for the reader of the report."""

    wide: bool
    dtype: str
    note: str


def choose(models: Sequence[PreTrainedModel], wanted: Wanted, *, kernels: bool) -> LossDtype:
    """Settle how the loss of a pair is measured: "auto" is float32 where it fits, "checkpoint" the models' own dtype.

    `kernels` says whether packed layers stay on their kernels in float32.
    """
    name = dtype_name(models[0].dtype)
    weights = "packed layers on their kernels" if kernels else "the exact stored weights, dequantized as readers do"
    if wanted == "checkpoint":
        return LossDtype(False, name, f"as the models are loaded: {name}")
    if method := next(filter(None, map(foreign_method, models)), None):
        why = f"layers of {method} compute in the dtype that they were loaded for; its rounding is part of the KL"
        return LossDtype(False, name, f"{name}, because {why}")
    device = models[0].device
    if fits_float32(models, device):
        return LossDtype(True, "float32", f"float32, {weights}")
    needed, free = sum(map(widening_bytes, models)), free_bytes(device) or 0
    return LossDtype(
        False,
        name,
        f"{name}, because float32 needs {needed / 1e9:.2g} GB more and {free / 1e9:.2g} GB are free; its rounding is "
        "part of the KL, see the noise floor",
    )


@contextmanager
def in_float32(model: nn.Module, *, keep_kernels: bool = False) -> Iterator[None]:
    """Let a model of 16 or 32 bits compute in float32 inside the block, in place; then it is as it was, bit for bit.

    `keep_kernels` leaves packed layers on their kernels, which quantize activations and do not round the weights; else
    they run as plain readers do: dequantized, then multiplied by torch.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # else float32 may multiply as bfloat16 or TF32
    prepared = [] if keep_kernels else [layer for layer in _packed(model) if layer.weight_prepared is not None]
    tables = _tables(model)
    wide = [(tensor, tensor.dtype) for tensor in _narrow_tensors(model)]
    try:
        for layer in prepared:
            layer.unprepare()
        for parent, name, table in tables:
            setattr(parent, name, table.dense().requires_grad_(False).float().train(table.training))
        for tensor, _ in wide:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in wide:
            tensor.data = tensor.data.to(dtype)  # what came from there goes back without rounding
        for parent, name, table in tables:
            setattr(parent, name, table)
        for layer in prepared:
            layer.prepare()
        torch.set_float32_matmul_precision(precision)


def _tables(model: nn.Module) -> list[tuple[nn.Module, str, PackedEmbedding]]:
    """Packed embeddings and where they are: their rows come in the dtype of the scales, so dense ones stand in."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, PackedEmbedding)
    ]


def _narrow_tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers of 16 bits, without those that belong to a packed weight."""
    stored = {
        id(tensor)
        for layer in _packed(model)
        for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
        if name != "bias"
    }
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return [
        tensor
        for key, tensor in tensors.items()
        if key not in stored and tensor.is_floating_point() and tensor.itemsize < 4
    ]


@contextmanager
def loading_for(kernel: Literal["reference"] | None) -> Iterator[None]:
    """Let models that are loaded inside the block run by plain torch ("reference"); None changes nothing.

    Which kernel runs is settled when a layer gets its weight.
    """
    if kernel is None:
        yield
        return
    before = {name: os.environ.get(name) for name in (KERNELS_VARIABLE, runtime.VARIABLE)}
    os.environ.update(dict.fromkeys(before, kernel))
    native.wanted.cache_clear()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        native.wanted.cache_clear()


@contextmanager
def in_accuracy(model: nn.Module, accuracy: Accuracy) -> Iterator[None]:
    """Let packed layers compute in an accuracy inside the block, and as before after it, whatever was set meanwhile."""
    before = [(layer, layer.exact) for layer in _packed(model)]
    set_accuracy(model, accuracy)
    try:
        yield
    finally:
        for layer, exact in before:
            layer.exact = exact


def _packed(model: nn.Module) -> list[PackedStorage]:
    return [module for module in model.modules() if isinstance(module, PackedStorage)]
