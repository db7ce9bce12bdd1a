"""Prefill and decode with a static cache; on a CUDA device each decoded token is one replay of a CUDA graph.

The graph is captured by hand from one forward pass. That works because a static cache of transformers counts its tokens
in a tensor: positions, mask and the place of new keys are computed on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmquant.eval.speed.throughput import Timing, now, timing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WARM_UP = 3  # steps before a capture: kernels are compiled and libraries make their handles in them
_ROUND_TO = 64  # attention with a mask wants key counts that 8 divides


class StaticDecoding:
    """One model that reads the same `ids` (batch_size, context + decode steps) again and again.

    The cache is made at once, the graph when it is first called.
    """

    def __init__(self, model: PreTrainedModel, ids: Tensor, context: int) -> None:
        from transformers import StaticCache

        self._model, self._context, self._ids = model, context, ids.to(model.device)
        self._token = self._ids[:, :1].clone()
        length = -(-max(ids.shape[1], context + _WARM_UP + 1) // _ROUND_TO) * _ROUND_TO
        self._cache: Any = StaticCache(config=model.config, max_cache_len=length)
        self._graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None  # (batch_size, 1, vocabulary) of the newest token

    def __call__(self) -> Timing:
        """Run one prefill and the decode steps after it, as `throughput.time_once` does."""
        context, model = self._context, self._model
        if self._graph is None and model.device.type == "cuda":
            self._prefill()
            self._graph = _captured(self._step)
        start = now(model.device)
        self._prefill()
        middle = now(model.device)
        for place in range(context, self._ids.shape[1]):
            self._token.copy_(self._ids[:, place : place + 1])
            self._step() if self._graph is None else self._graph.replay()
        return timing(self._ids, context, self._cache, (start, middle, now(model.device)))

    def _prefill(self) -> None:
        self._cache.reset()  # in place: a captured graph knows the addresses
        ids = self._ids[:, : self._context]
        self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    def _step(self) -> None:
        self.logits = self._model(input_ids=self._token, past_key_values=self._cache, use_cache=True).logits


def _captured(step: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A graph of one step, after some on a side stream, as torch asks for."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            step()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph
