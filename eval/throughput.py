"""Tokens per second of two or more models, measured in turn.

The models alternate within every round (A B, then B A), so a machine that slows down or is shared slows all of them;
the speed-up is the median of the per-round ratios. A forward pass with a key-value cache is timed, not `generate`: no
sampling, no stopping rule, the same fixed tokens for all models.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from llmquant.errors import DataError
from llmquant.eval.scoring import evaluating
from llmquant.eval.statistics import Spread, spread
from llmquant.machine import device_name
from llmquant.memory import free_bytes
from llmquant.nn.accuracy import accuracy_of, kernels_used
from llmquant.nn.counting import is_packed, weight_count
from llmquant.progress import Progress
from llmquant.turns import take_turns
from llmquant.words import dtype_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Dense dtypes that may be the fastest, on a CPU and on a GPU: CPUs multiply float16 slowly, GPUs float32.
_FAST = ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16))
_SPARE = 0.7  # share of the free memory that one more version of the baseline may take
_MAX_ROUNDS = 200
_PATIENCE = 3  # a crawling machine gets fewer rounds than min_rounds after this many times the planned seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputOptions:
    """What is timed.

    Raises:
        DataError: if one of them is no number that can be.
    """

    prompt_tokens: int = 128  # of the prefill pass
    decode_tokens: int = 32  # single-token passes that follow it
    batch_size: int = 1  # sequences at once
    warmup: int = 1  # untimed rounds
    min_rounds: int = 3  # timed rounds at least, unless they take more than three times `seconds`
    seconds: float = 20.0  # no new round starts after this time

    def __post_init__(self) -> None:
        least = {"prompt_tokens": 1, "decode_tokens": 1, "batch_size": 1, "warmup": 0, "min_rounds": 1}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise DataError(f"the speed test cannot have {name} {getattr(self, name)}; at least {limit}")
        if not 0 <= self.seconds < math.inf:
            raise DataError(f"the speed test cannot take {self.seconds} seconds; give a number of 0 or more")


class Timing(NamedTuple):
    """Tokens per second of one prefill and of the decode steps after it."""

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second, measured in turn with other models; or such speeds over those of another model."""

    prefill: Spread
    decode: Spread


@dataclass(frozen=True, slots=True)
class DenseSpeed:
    """The baseline in one dtype: tokens per second, and the quantized model over it, round by round."""

    dtype: str
    prefill: Spread
    decode: Spread
    prefill_speedup: Spread
    decode_speedup: Spread


@dataclass(frozen=True, slots=True)
class SpeedProtocol:
    """How speed was measured, and quantized over baseline round by round (above 1 is faster).

    `prefill_speedup` and `decode_speedup` are over the baseline in its own dtype, `dense` over it in every dtype that
    was timed, its own first; `fastest_prefill` and `fastest_decode` name the fastest of them. `kernels` and `accuracy`
    are those of the quantized model while it was timed, which is how it runs by default.
    """

    batch_size: int
    prompt_tokens: int
    decode_tokens: int
    threads: int
    device: str
    prefill_speedup: Spread
    decode_speedup: Spread
    dense: tuple[DenseSpeed, ...]
    fastest_prefill: str
    fastest_decode: str
    kernels: dict[str, int] = field(default_factory=dict)
    accuracy: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Throughput:
    """Speed of both models and how it was measured."""

    baseline: Speed
    quantized: Speed
    protocol: SpeedProtocol


def measure_throughput(
    baseline: PreTrainedModel,
    quantized: PreTrainedModel,
    prompt: Tensor,
    options: ThroughputOptions,
    *,
    progress: Progress | None = None,
) -> Throughput:
    """Time prefill and decode of the quantized model and of the baseline, in its own dtype and in others.

    `prompt` (tokens,) holds int64 token ids, at least prompt_tokens + decode_tokens of them.

    Raises:
        DataError: if the prompt is too short.
    """
    check_prompt(len(prompt), options)
    ids = prompt[: options.prompt_tokens + options.decode_tokens].expand(options.batch_size, -1)
    dense, left_out = dense_versions(baseline)
    own, *others = dense.values()
    models = [own, quantized, *others]
    rounds = timed_rounds(models, [partial(time_once, model, ids, options) for model in models], options, progress)
    places = (0, *range(2, len(models)))
    timed = tuple(_dense_speed(rounds, place, name) for place, name in zip(places, dense, strict=True))
    protocol = SpeedProtocol(
        batch_size=options.batch_size,
        prompt_tokens=options.prompt_tokens,
        decode_tokens=options.decode_tokens,
        threads=torch.get_num_threads(),
        device=device_name(baseline.device),
        prefill_speedup=timed[0].prefill_speedup,
        decode_speedup=timed[0].decode_speedup,
        dense=timed,
        fastest_prefill=max(timed, key=lambda each: each.prefill.median).dtype,
        fastest_decode=max(timed, key=lambda each: each.decode.median).dtype,
        kernels=kernels_used(quantized),
        accuracy=accuracy_of(quantized),
        note=left_out,
    )
    return Throughput(speed(rounds, 0), speed(rounds, 1), protocol)


def dense_versions(model: PreTrainedModel) -> tuple[dict[str, PreTrainedModel], str | None]:
    """The model in every dtype that may be the fastest where it lies, its own first; and what memory left out.

    A packed model has one version, itself.
    """
    own = dtype_name(model.dtype)
    if is_packed(model):
        return {f"packed {own}": model}, None
    others = [dtype for dtype in _FAST[model.device.type != "cpu"] if dtype != model.dtype]
    found, left_out = {own: model}, []
    for dtype in others:
        name = dtype_name(dtype)
        free = free_bytes(model.device)
        if free is not None and weight_count(model) * dtype.itemsize > _SPARE * free:
            left_out.append(name)
            continue
        found[name] = copy.deepcopy(model)
        torch.nn.Module.to(found[name], dtype)  # in place; transformers' own `to` takes no dtype for some models
    return found, f"too little memory to time the baseline in {', '.join(left_out)}" if left_out else None


def _dense_speed(rounds: Sequence[Sequence[Timing]], place: int, name: str) -> DenseSpeed:
    timed, over = speed(rounds, place), speedup(rounds, 1, place)
    return DenseSpeed(name, timed.prefill, timed.decode, over.prefill, over.decode)


def check_prompt(length: int, options: ThroughputOptions) -> None:
    """Refuse windows of `length` tokens that are too short for what is timed.

    Raises:
        DataError: says how many are needed.
    """
    wanted = options.prompt_tokens + options.decode_tokens
    if length < wanted:
        raise DataError(
            f"the speed test needs {wanted} tokens (prompt {options.prompt_tokens} + decode {options.decode_tokens}), "
            f"a window has {length}; use longer windows, or leave the speed out "
            "(--speed 0, in Python speed=0)"
        )


def timed_rounds(
    models: Sequence[PreTrainedModel],
    runs: Sequence[Callable[[], Timing]],
    options: ThroughputOptions,
    progress: Progress | None = None,
) -> list[list[Timing]]:
    """Let all `runs`, which use `models`, take turns, after `options.warmup` rounds that do not count.

    The results are, for each round, in the order of `runs`. `progress` is told of whole seconds in a stage "speed".
    """
    progress = progress or Progress()
    planned, told = round(options.seconds), 0
    with ExitStack() as stack, torch.inference_mode():
        for model in models:
            stack.enter_context(evaluating(model))
        progress.stage("speed", planned, unit="s")
        take_turns(runs, lambda done: done < options.warmup)
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


def speed(rounds: Sequence[Sequence[Timing]], which: int) -> Speed:
    """Median and quartiles of one of the runs."""
    return Speed(*(spread(speeds) for speeds in zip(*(each[which] for each in rounds), strict=True)))


def speedup(rounds: Sequence[Sequence[Timing]], which: int, base: int) -> Speed:
    """Prefill and decode of one run over those of another, round by round."""
    ratios = [[one / other for one, other in zip(each[which], each[base], strict=True)] for each in rounds]
    return Speed(*(spread(phase) for phase in zip(*ratios, strict=True)))


def _goes_on(done: int, elapsed: float, options: ThroughputOptions) -> bool:
    if done < options.min_rounds:
        return done == 0 or elapsed < _PATIENCE * options.seconds
    return done < _MAX_ROUNDS and elapsed < options.seconds


def time_once(model: PreTrainedModel, ids: Tensor, options: ThroughputOptions) -> Timing:
    """Run one prefill and the decode steps after it, ids (batch_size, prompt_tokens + decode_tokens)."""
    ids = ids.to(model.device)
    steps = ids[:, options.prompt_tokens :].split(1, dim=1)
    start = now(model.device)
    # generate, too, asks the prefill for the last position's logits only
    cache = model(input_ids=ids[:, : options.prompt_tokens], use_cache=True, logits_to_keep=1).past_key_values
    middle = now(model.device)
    for step in steps:
        cache = model(input_ids=step, past_key_values=cache, use_cache=True).past_key_values
    return timing(options, start, middle, now(model.device))


def timing(options: ThroughputOptions, start: float, middle: float, end: float) -> Timing:
    """Speeds of a prefill until `middle` and of decode steps after it."""
    prefill, decode = (options.batch_size * tokens for tokens in (options.prompt_tokens, options.decode_tokens))
    return Timing(prefill / (middle - start), decode / (end - middle))


def now(device: torch.device) -> float:
    """The clock, once a device has done all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
