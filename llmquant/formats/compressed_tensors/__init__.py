"""The layout of compressed-tensors, in safetensors: what llmquant, transformers and vLLM load. See `base.Format`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llmquant.formats.base import Content, Problem, Row
from llmquant.formats.compressed_tensors.codec import payload_bytes, stored_bytes, suffixes
from llmquant.formats.compressed_tensors.files import Shards, ShardWriter
from llmquant.formats.compressed_tensors.readers import readers
from llmquant.models.checkpoint import Checkpoint
from llmquant.models.inventory import Inventory, ModuleInfo
from llmquant.spec import Scheme

__all__ = ["payload_bytes", "readers", "stored_bytes"]

NAME = "compressed-tensors"
UNIT_SUFFIX = ".safetensors"
FUSED_BY = "vLLM"


def why_not(module: ModuleInfo, scheme: Scheme, *, portable: bool) -> str:
    if module.turned and portable:
        return "Conv1D layers are read back by llmquant alone; say `portable: false` in the recipe if that is enough"
    return ""


def problems(rows: Sequence[Row], inventory: Inventory, *, portable: bool) -> Iterator[Problem]:
    yield from _split_sets(rows)
    yield from _embeddings(rows, portable=portable)


def obstacles(config: Mapping[str, Any]) -> Iterator[str]:
    yield from ()


def scale_dtype(scheme: Scheme, checkpoint: torch.dtype) -> torch.dtype:
    return checkpoint


def dense_dtype(scale_dtype: torch.dtype) -> torch.dtype:
    return scale_dtype


def kept_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> torch.dtype:
    return dtype


def names(key: str, scheme: Scheme) -> tuple[str, ...]:
    base = key.removesuffix(".weight")
    return (key,) if scheme.is_keep else tuple(f"{base}.{suffix}" for suffix in suffixes(scheme))


def writer(folder: Path, contents: Mapping[str, Content], config: Mapping[str, Any]) -> ShardWriter:
    return ShardWriter(folder, contents)


def open(folder: Path) -> Shards:
    return Shards(Checkpoint.open(folder, allow_quantized=True))


def _split_sets(rows: Sequence[Row]) -> Iterator[Problem]:
    fused: dict[str, list[Row]] = {}
    for row in rows:
        if row.module.fused:
            fused.setdefault(row.module.fused, []).append(row)
    for name, members in fused.items():
        if len({member.scheme for member in members}) == 1:
            continue
        schemes = ", ".join(f"{member.module.name.rpartition('.')[2]} {member.scheme}" for member in members)
        part = {"qkv": "attention.qkv", "gate_up": "mlp.gate_up"}.get(name.rpartition(":")[2])
        fix = f", for example by a rule with `match: {part}`" if part else ""
        first = members[0].module
        parent = ModuleInfo(first.name.rpartition(".")[0], "other", (), 0, first.block)
        yield f"{FUSED_BY} loads these as one layer, so they need one scheme{fix}: {schemes}", parent


def _embeddings(rows: Sequence[Row], *, portable: bool) -> Iterator[Problem]:
    """Who could read packed embeddings back; see `readers`."""
    quantized = [row for row in rows if not row.scheme.is_keep and row.module.tied_to is None]
    schemes = {row.scheme for row in quantized}
    for row in quantized:
        if not row.module.table:
            continue
        if any(scheme.activations for scheme in schemes):
            yield "no reader takes packed embeddings beside 8-bit activations; keep them", row.module
        elif portable and len(schemes) > 1:
            yield (
                "packed embeddings are read back by llmquant alone, unless all quantized layers share one scheme (then "
                "by transformers too); say `portable: false` in the recipe if llmquant is enough",
                row.module,
            )
