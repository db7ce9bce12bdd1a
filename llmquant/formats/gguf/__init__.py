"""GGUF, llama.cpp's format: weights of one Llama, in blocks whose integers are exactly those that were chosen.

Q8_0 is int8-g32 and Q4_0 is int4-g32 with float16 scales; what stays is F16, BF16 or F32, one-dimensional tensors F32,
as llama.cpp's arithmetic wants them. The file has no tokenizer yet: it is for checking what was written.
What each function is for: `base.Format`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llmquant.errors import PlanError
from llmquant.formats.base import Content, Planned, Problem, Row, Verdict
from llmquant.formats.gguf.blocks import BLOCKS, SCALE_DTYPE, row_bytes
from llmquant.formats.gguf.file import PLAIN, Entry, Value
from llmquant.formats.gguf.llama import ARCHITECTURE, hyperparameters, named, obstacles
from llmquant.formats.gguf.writer import GgufFile, GgufWriter
from llmquant.models.inventory import Inventory, ModuleInfo
from llmquant.spec import KEEP, Scheme

__all__ = ["obstacles"]

NAME = "gguf"
UNIT_SUFFIX = ""  # all in one file
FUSED_BY = ""
_FILE_TYPES = {Scheme(4, "group", 32): 2, Scheme(8, "group", 32): 7}
_QUANTIZATION_VERSION = 2


def why_not(module: ModuleInfo, scheme: Scheme, *, portable: bool) -> str:
    if scheme in BLOCKS:
        return ""
    if scheme.activations:
        return "GGUF stores weights only, without scales of activations; use int8-g32"
    if not scheme.symmetric:
        return f"GGUF has no block for asymmetric codes of {scheme} that is exact; use int8-g32 or int4-g32"
    return f"GGUF has blocks of 32 weights with 8 or 4 bits, not {scheme}; use int8-g32 or int4-g32"


def problems(rows: Sequence[Row], inventory: Inventory, *, portable: bool) -> Iterator[Problem]:
    if inventory.architecture != ARCHITECTURE:
        yield f"GGUF is written for {ARCHITECTURE} only, not {inventory.architecture}; drop `format: gguf`", None


def scale_dtype(scheme: Scheme, checkpoint: torch.dtype) -> torch.dtype:
    return SCALE_DTYPE


def dense_dtype(scale_dtype: torch.dtype) -> torch.dtype:
    return torch.float32


def kept_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if len(shape) == 1 else dtype


def payload_bytes(shape: tuple[int, int], scheme: Scheme, scale_dtype: torch.dtype) -> int:
    return shape[0] * row_bytes(shape[1], scheme)


stored_bytes = payload_bytes


def names(key: str, scheme: Scheme) -> tuple[str, ...]:
    return (named(key),)


def readers(plan: Planned) -> dict[str, Verdict]:
    return {
        "llmquant": Verdict(False, "writes and verifies GGUF, and does not run it"),
        "llama.cpp": Verdict(True, "by token ids: the file has no tokenizer yet"),
        "transformers": Verdict(True, "with gguf_file='model.gguf', as dense weights"),
    }


def writer(folder: Path, contents: Mapping[str, Content], config: Mapping[str, Any]) -> GgufWriter:
    entries = [_entry(key, content) for key, content in contents.items()]
    metadata = hyperparameters(config) | {
        "general.file_type": _file_type(contents),
        "general.quantization_version": _QUANTIZATION_VERSION,
        "tokenizer.ggml.model": "none",
    }
    return GgufWriter(folder, metadata, entries)


def open(folder: Path) -> GgufFile:
    return GgufFile.open(folder)


def _entry(key: str, content: Content) -> Entry:
    name = named(key)
    if content.scheme != KEEP:
        return Entry(name, content.shape, content.scheme)
    dtype = kept_dtype(content.shape, content.dtype)
    if dtype not in PLAIN or len(content.shape) not in (1, 2) or torch.promote_types(content.dtype, dtype) != dtype:
        raise PlanError(f"{key} is {content.dtype} {list(content.shape)}, which GGUF does not store exactly")
    return Entry(name, content.shape, dtype)


def _file_type(contents: Mapping[str, Content]) -> Value:
    """What most of the file is, as llama.cpp shows it: the scheme of most numbers among those quantized."""
    sizes: dict[Scheme, int] = {}
    for content in contents.values():
        if content.scheme != KEEP:
            sizes[content.scheme] = sizes.get(content.scheme, 0) + content.shape[0] * content.shape[1]
    return _FILE_TYPES[max(sizes, key=lambda scheme: sizes[scheme])]
