"""Speed and memory of several loaded models side by side: the same tokens, in turn, round by round.

Unlike an evaluation it says nothing of quality, so it needs no text; the tokens are random, and the same for all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmquant.data.calibration import context_limit
from llmquant.errors import DataError
from llmquant.eval.metrics.memory import parameter_bytes
from llmquant.eval.precision import in_accuracy
from llmquant.eval.scoring import Progress
from llmquant.eval.static_decoding import StaticDecoding
from llmquant.eval.statistics import Spread
from llmquant.eval.throughput import ThroughputOptions, Timing, speed, speedup, time_once, timed_rounds
from llmquant.machine import OtherPrograms, machine, versions
from llmquant.nn.accuracy import Accuracy, accuracy_of, kernels_used, set_accuracy
from llmquant.nn.counting import weight_count
from llmquant.words import dtype_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Contender:
    """A model that takes part. One model may do so in both accuracies, and with both caches."""

    name: str  # for the report
    model: PreTrainedModel
    accuracy: Accuracy | None  # of its kernels; None where it has none to choose from
    static: bool = False  # whether the cache has a fixed size; on a CUDA device decoding is a CUDA graph then


@dataclass(frozen=True, slots=True)
class Peer:
    """Another program, which times as many tokens in its own way."""

    name: str
    parameter_bytes: int
    run: Callable[[], Timing]  # a prefill and the decode steps after it


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """What was measured of one contender."""

    name: str  # dtype, scheme, or folder
    dtype: str  # in which it computes; empty for another program, which decides that itself
    accuracy: str | None  # "exact" or "fast"; None where the model has no such choice
    static: bool  # whether the cache had a fixed size, see `Contender`
    kernels: dict[str, int]  # packed layers by kernel; none for a dense model, which torch runs
    parameter_bytes: int  # memory of weights
    prefill: Spread  # tokens per second
    decode: Spread
    prefill_speedup: Spread  # over the first row, round by round
    decode_speedup: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """Result of `bench`; the fields are the keys of the JSON file, explained in docs/evaluation.md."""

    model: str
    parameters: int
    versions: dict[str, str]
    machine: dict[str, str | int]
    batch_size: int
    prompt_tokens: int
    decode_tokens: int
    others: float | None  # share of all processors that other programs kept busy meanwhile, where the system tells
    rows: tuple[BenchRow, ...]

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def contenders_of(name: str, model: PreTrainedModel, accuracies: Sequence[Accuracy]) -> list[Contender]:
    """A contender for each accuracy in which other kernels run; a single one where there is no difference."""
    by_kernels: dict[str, Contender] = {}
    for accuracy in accuracies:
        with in_accuracy(model, accuracy):
            by_kernels.setdefault(json.dumps(kernels_used(model)), Contender(name, model, accuracy))
    found = list(by_kernels.values())
    same = accuracy_of(model) is None or len(found) == 1 < len(accuracies)
    return [Contender(name, model, None)] if same else found


def bench(
    name: str,
    contenders: Sequence[Contender],
    options: ThroughputOptions,
    *,
    peers: Sequence[Peer] = (),
    progress: Progress | None = None,
) -> BenchReport:
    """Time all contenders, versions of the model `name`, and peers in turn, and compare them with the first contender.

    Raises:
        DataError: if prompt and decode tokens exceed the context of the model, or are not positive.
    """
    ids = _tokens(contenders[0].model, options)
    models = list({id(each.model): each.model for each in contenders}.values())
    others = OtherPrograms()
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(in_accuracy(model, "exact"))  # the runs switch it; this puts it back
        runs = [_run(each, ids, options) for each in contenders] + [each.run for each in peers]
        rounds = timed_rounds(models, runs, options, progress)
        rows = [_row(each, rounds, place) for place, each in enumerate([*contenders, *peers])]
    return BenchReport(
        model=name,
        parameters=weight_count(contenders[0].model),
        versions=versions(),
        machine=machine(contenders[0].model.device),
        batch_size=options.batch_size,
        prompt_tokens=options.prompt_tokens,
        decode_tokens=options.decode_tokens,
        others=others.share(),
        rows=tuple(rows),
    )


def _tokens(model: PreTrainedModel, options: ThroughputOptions) -> Tensor:
    """(batch_size, prompt_tokens + decode_tokens) random token ids."""
    count, limit = options.prompt_tokens + options.decode_tokens, context_limit(model.config)
    if limit is not None and count > limit:
        raise DataError(
            f"prompt {options.prompt_tokens} + new {options.decode_tokens} = {count} tokens, but the model's context "
            f"is {limit}; ask for fewer"
        )
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (options.batch_size, count), generator=generator)


def _run(contender: Contender, ids: Tensor, options: ThroughputOptions) -> Callable[[], Timing]:
    model = contender.model
    once = StaticDecoding(model, ids, options) if contender.static else partial(time_once, model, ids, options)

    def run() -> Timing:
        _choose(contender)
        return once()

    return run


def _choose(contender: Contender) -> None:
    if contender.accuracy is not None:
        set_accuracy(contender.model, contender.accuracy)


def _row(contender: Contender | Peer, rounds: Sequence[Sequence[Timing]], place: int) -> BenchRow:
    if isinstance(contender, Peer):
        dtype, accuracy, static, kernels, size = "", None, False, {}, contender.parameter_bytes
    else:
        _choose(contender)
        model, accuracy, static = contender.model, contender.accuracy, contender.static
        dtype, kernels, size = dtype_name(model.dtype), kernels_used(model), parameter_bytes(model)
    timed, over = speed(rounds, place), speedup(rounds, place, 0)
    return BenchRow(
        name=contender.name,
        dtype=dtype,
        accuracy=accuracy,
        static=static,
        kernels=kernels,
        parameter_bytes=size,
        prefill=timed.prefill,
        decode=timed.decode,
        prefill_speedup=over.prefill,
        decode_speedup=over.decode,
    )
