"""Greedy decoding in plain transformers for decode_gpu.py: a growing cache, a CUDA graph, or torch.compile.

The token of each step stays on the device and is the input of the next, so nothing waits for the host in between. The
graph is captured by hand from one forward pass with a static cache. That works because a static cache of transformers
(5.17 and later) counts its tokens in a tensor: positions, mask and the place of new keys are computed on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

Way = Literal["eager", "static", "graph", "compiled"]
WAYS: tuple[Way, ...] = get_args(Way)
_WARM_UP = 3  # steps before a capture: kernels are compiled and libraries make their handles in them
_ROUND_TO = 64  # attention with a mask wants key counts that 8 divides


class Decoder:
    """One model that decodes one prompt in one way.

    Attributes:
        model: of transformers.
        prompt: (batch, context) int64 ids.
        way: eager with a dynamic cache, or with a static cache: eager, by a CUDA graph, or compiled with the
            mode "reduce-overhead", which is what `generate` does for a static cache.
        token: (batch, 1) the newest token, always the same memory.
    """

    def __init__(self, model: Any, prompt: Tensor, steps: int, way: Way) -> None:
        """Prepare to decode, but for the capture, which `start` does when it is first called.

        Args:
            model: of transformers, on the device of the prompt.
            prompt: (batch, context) int64 ids.
            steps: tokens after the prompt that the cache must hold.
            way: see the class.
        """
        self.model, self.prompt, self.way = model, prompt, way
        self.token = prompt[:, :1].clone()
        length = -(-(prompt.shape[1] + max(steps, _WARM_UP)) // _ROUND_TO) * _ROUND_TO
        self._cache: Any = None if way == "eager" else StaticCache(config=model.config, max_cache_len=length)
        compiled = way == "compiled"
        self._run: Any = torch.compile(model, mode="reduce-overhead", dynamic=False) if compiled else model
        self._graph: torch.cuda.CUDAGraph | None = None

    def start(self) -> None:
        """Run the prompt; the first time also whatever must be compiled or captured."""
        if self.way == "graph" and self._graph is None:
            self._read_prompt()
            self._graph = _capture(self._forward)
        self._read_prompt()

    def step(self) -> None:
        """Decode one token."""
        if self._graph is not None:
            self._graph.replay()
            return
        if self.way == "compiled":
            torch.compiler.cudagraph_mark_step_begin()
        self._forward()

    def _read_prompt(self) -> None:
        if self.way == "eager":
            self._cache = DynamicCache(config=self.model.config)
        else:
            self._cache.reset()  # in place: a captured graph knows the addresses
        # Like generate: the model itself reads the prompt, and only the logits of the last position are computed.
        out = self.model(self.prompt, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self.token.copy_(out.logits.argmax(-1))

    def _forward(self) -> None:
        logits = self._run(self.token, past_key_values=self._cache, use_cache=True).logits
        self.token.copy_(logits.argmax(-1))


def _capture(step: Callable[[], None]) -> torch.cuda.CUDAGraph:
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


def greedy(decoder: Decoder, steps: int) -> Tensor:
    """The tokens that a decoder finds: (batch, 1 + steps), the first one from the prompt."""
    decoder.start()
    found = [decoder.token.clone()]
    for _ in range(steps):
        decoder.step()
        found.append(decoder.token.clone())
    return torch.cat(found, 1)


def time_decode(decoder: Decoder, steps: int) -> float:
    """Seconds per step, the prompt not included."""
    decoder.start()
    start = now(decoder.prompt.device)
    for _ in range(steps):
        decoder.step()
    return (now(decoder.prompt.device) - start) / steps


def prefill(model: Any, prompt: Tensor) -> Tensor:
    """The logits after a prompt (batch, tokens), with a new cache; as `generate` begins."""
    return model(prompt, past_key_values=DynamicCache(config=model.config), use_cache=True, logits_to_keep=1).logits


def time_prefill(model: Any, prompt: Tensor) -> float:
    """Seconds of a prompt."""
    start = now(prompt.device)
    prefill(model, prompt)
    return now(prompt.device) - start


def now(device: torch.device) -> float:
    """The clock, once the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def take_turns(runs: Sequence[Callable[[], float]], rounds: int, goes_on: Callable[[], bool]) -> list[list[float]]:
    """Call all runs in each round, every second one in reverse, so that a card that slows down slows all.

    Args:
        runs: each measures once.
        rounds: how many at most.
        goes_on: asked before each round but the first.

    Returns:
        the results of each run.
    """
    results: list[list[float]] = [[] for _ in runs]
    for number in range(rounds):
        if number and not goes_on():
            break
        order = list(enumerate(runs))
        for place, run in order if number % 2 == 0 else reversed(order):
            results[place].append(run())
    return results
