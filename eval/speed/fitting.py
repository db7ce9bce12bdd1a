"""Which cells of a grid of batches and contexts a machine and a model can hold, and why others are left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from llmquant.data.calibration import context_limit
from llmquant.eval.speed.throughput import Cell, quiet, time_once
from llmquant.memory import free_bytes
from llmquant.nn.storage import PackedStorage
from llmquant.words import bytes_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SPARE = 0.85  # share of the free memory that a run may take
_ALIVE = 3  # results of the widest layer that are in memory at the same time


def fitting(
    models: Sequence[PreTrainedModel], cells: Iterable[Cell], decode_tokens: int, *, standing: int = 0
) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    """The cells that fit, and in words why each of the others does not.

    Models take turns, so a run has the memory for itself; but `standing` caches of fixed size are there all the time.
    Each model runs once, on two tokens, which also makes it load the libraries that it needs.
    """
    limits = [limit for model in models if (limit := context_limit(model.config)) is not None]
    cached = max(_cache_per_token(model) for model in models)
    worked = max(_work_per_token(model) for model in models)
    free = free_bytes(models[0].device)
    found, left_out, held = [], [], 0
    for cell in cells:
        tokens = cell.context + decode_tokens
        cache = cell.batch_size * tokens * cached
        needed = held + cache * (standing or 1) + cell.batch_size * cell.context * worked
        if limits and tokens > min(limits):
            left_out.append(
                f"{cell}: with {decode_tokens} decoded it takes {tokens} tokens, the model's context is {min(limits)}"
            )
        elif free is not None and needed > _SPARE * free:
            left_out.append(f"{cell}: it needs about {bytes_text(needed)} of memory, {bytes_text(free)} are free")
        else:
            found.append(cell)
            held += cache * standing
    return tuple(found), tuple(left_out)


def _cache_per_token(model: PreTrainedModel) -> int:
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with quiet([model]):
        return (time_once(model, ids, 1).cache_bytes or 0) // 2


def _work_per_token(model: PreTrainedModel) -> int:
    """Bytes that a prefill takes beside the cache, by the widest linear layer; the head sees the last token only."""
    head = model.get_output_embeddings()
    linears = [each for each in model.modules() if isinstance(each, nn.Linear | PackedStorage) and each is not head]
    widest = max((each.in_features + each.out_features for each in linears), default=0)
    return _ALIVE * widest * model.dtype.itemsize
