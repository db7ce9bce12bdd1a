"""What a test of speed runs: a prefill and decode steps, by number of sequences and by tokens in the cache.

A forward pass with a key-value cache is timed, not `generate`: no sampling, no stopping rule, the same fixed tokens for
all models.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from llmquant.errors import DataError
from llmquant.eval.scoring import evaluating
from llmquant.progress import Progress
from llmquant.turns import take_turns

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAX_ROUNDS = 200
_PATIENCE = 3  # a crawling machine gets fewer rounds than min_rounds after this many times the planned seconds


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the grid of what is timed."""

    batch_size: int  # sequences at once
    context: int  # tokens of the prompt, which lie in the cache when decoding begins

    def __str__(self) -> str:
        return f"batch {self.batch_size}, context {self.context}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputOptions:
    """What is timed.

    Raises:
        DataError: if one of them is no number that can be.
    """

    batches: Sequence[int] = (1,)  # sequences at once
    contexts: Sequence[int] = (128,)  # tokens of the prompt, each with each of the batches
    decode_tokens: int = 32  # single-token passes that follow it
    warmup: int = 1  # untimed rounds; memory is measured in the first
    min_rounds: int = 3  # timed rounds at least, unless they take more than three times `seconds`
    seconds: float = 20.0  # no new round starts after this time

    def __post_init__(self) -> None:
        least = {"batches": 1, "contexts": 1, "decode_tokens": 1, "warmup": 0, "min_rounds": 1}
        for name, limit in least.items():
            given = getattr(self, name)
            many = isinstance(given, Sequence)
            if (many and not given) or any(each < limit for each in (given if many else (given,))):
                raise DataError(f"the speed test cannot have {name} {given}; at least {limit}")
        if not 0 <= self.seconds < math.inf:
            raise DataError(f"the speed test cannot take {self.seconds} seconds; give a number of 0 or more")

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The grid, those of one context together, each once."""
        return tuple(dict.fromkeys(Cell(batch, context) for context in self.contexts for batch in self.batches))


class Timing(NamedTuple):
    """Tokens per second of one prefill and of the decode steps after it, and how large the cache became."""

    prefill: float
    decode: float
    cache_bytes: int | None = None


def tokens(model: PreTrainedModel, cell: Cell, decode_tokens: int) -> Tensor:
    """(batch_size, context + decode_tokens) random token ids, always the same."""
    shape, generator = (cell.batch_size, cell.context + decode_tokens), torch.Generator().manual_seed(0)
    return torch.randint(model.config.get_text_config().vocab_size, shape, generator=generator)


def timed_rounds(
    runs: Sequence[Callable[[], Timing]], options: ThroughputOptions, progress: Progress
) -> list[list[Timing]]:
    """Let all `runs` take turns.

    They alternate within every round, and every second round is in reverse, so a machine that slows down or is shared
    slows all of them. The results are, for each round, in the order of `runs`. `progress` is told of whole seconds in a
    stage "speed".
    """
    planned, told = round(options.seconds), 0
    progress.stage("speed", planned, unit="s")
    start = time.perf_counter()

    def goes_on(done: int) -> bool:
        nonlocal told
        elapsed = time.perf_counter() - start
        if done and (more := min(int(elapsed), planned) - told):
            progress.step(steps=more)
            told += more
        return _goes_on(done, elapsed, options)

    rounds = take_turns(runs, goes_on)
    if told < planned:
        progress.step(steps=planned - told)
    return rounds


def _goes_on(done: int, elapsed: float, options: ThroughputOptions) -> bool:
    if done < options.min_rounds:
        return done == 0 or elapsed < _PATIENCE * options.seconds
    return done < _MAX_ROUNDS and elapsed < options.seconds


@contextmanager
def quiet(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Switch dropout and gradients off inside the block."""
    with ExitStack() as stack, torch.inference_mode():
        for model in models:
            stack.enter_context(evaluating(model))
        yield


def time_once(model: PreTrainedModel, ids: Tensor, context: int) -> Timing:
    """Run one prefill of `context` tokens and the decode steps after it, ids (batch_size, context + decode steps)."""
    ids = ids.to(model.device)
    steps = ids[:, context:].split(1, dim=1)
    start = now(model.device)
    # generate, too, asks the prefill for the last position's logits only
    cache = model(input_ids=ids[:, :context], use_cache=True, logits_to_keep=1).past_key_values
    middle = now(model.device)
    for step in steps:
        cache = model(input_ids=step, past_key_values=cache, use_cache=True).past_key_values
    return timing(ids, context, cache, (start, middle, now(model.device)))


def timing(ids: Tensor, context: int, cache: Any, clock: tuple[float, float, float]) -> Timing:
    """Speeds of a prefill of `context` tokens, and of the other steps of ids (batch_size, tokens).

    `clock` has the times when the prefill began, when it ended, and when the decode steps ended.
    """
    start, middle, end = clock
    batch_size, tokens = ids.shape
    speeds = batch_size * context / (middle - start), batch_size * (tokens - context) / (end - middle)
    return Timing(*speeds, cache_bytes(cache))


def cache_bytes(cache: Any) -> int | None:
    """Bytes of the tensors of a cache of transformers; None of one of another build."""
    held = [value for layer in getattr(cache, "layers", ()) for value in vars(layer).values()]
    return sum(tensor.nbytes for tensor in held if isinstance(tensor, Tensor)) or None


def now(device: torch.device) -> float:
    """The clock, once a device has done all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
