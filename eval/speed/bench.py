"""Speed and memory of several loaded models side by side: the same tokens, in turn, round by round.

It says nothing of quality, so it needs no text: the tokens are random, and the same for all. `llmquant bench` and the
speed of an evaluation are both this.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from llmquant.eval.metrics.memory import measure_memory, parameter_bytes
from llmquant.eval.precision import in_accuracy
from llmquant.eval.speed.contender import Contender
from llmquant.eval.speed.fitting import fitting
from llmquant.eval.speed.slowness import explained
from llmquant.eval.speed.speeds import Row, Speeds, Timed
from llmquant.eval.speed.static_decoding import StaticDecoding
from llmquant.eval.speed.throughput import Cell, ThroughputOptions, Timing, quiet, time_once, timed_rounds, tokens
from llmquant.machine import OtherPrograms
from llmquant.nn.accuracy import Accuracy, accuracy_of, kernels_used
from llmquant.nn.counting import is_packed
from llmquant.progress import Progress
from llmquant.turns import take_turns
from llmquant.words import dtype_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Peer:
    """Another program, which times as many tokens in its own way."""

    name: str
    parameter_bytes: int
    run: Callable[[Cell], Timing]  # a prefill and the decode steps after it


def contenders_of(name: str, model: PreTrainedModel, accuracies: Sequence[Accuracy]) -> list[Contender]:
    """A contender for each accuracy in which other kernels run; a single one where there is no difference."""
    by_kernels: dict[str, Contender] = {}
    for accuracy in accuracies:
        with in_accuracy(model, accuracy):
            by_kernels.setdefault(json.dumps(kernels_used(model)), Contender(name, model, accuracy))
    found = list(by_kernels.values())
    same = accuracy_of(model) is None or len(found) == 1 < len(accuracies)
    return [Contender(name, model)] if same else found


def bench(
    contenders: Sequence[Contender],
    options: ThroughputOptions,
    *,
    peers: Sequence[Peer] = (),
    progress: Progress | None = None,
) -> Speeds:
    """Time all contenders, versions of one model, and peers in turn, in each cell that fits."""
    progress = progress or Progress()
    models = list({id(each.model): each.model for each in contenders}.values())
    load, others = _load_average(), OtherPrograms()
    standing = sum(each.static for each in contenders)
    cells, left_out = fitting(models, options.cells, options.decode_tokens, standing=standing)
    with ExitStack() as stack:
        for each in contenders:
            if each.accuracy is not None:  # the runs switch it; this puts it back
                stack.enter_context(in_accuracy(each.model, each.accuracy))
        stack.enter_context(quiet(models))
        runs = [run for cell in cells for run in _runs(contenders, peers, cell, options.decode_tokens)]
        peaks, note = _warm_up(contenders[0].model, runs, options.warmup, progress)
        rounds = timed_rounds(runs, options, progress) if runs else []
        results, count = list(zip(*rounds, strict=True)), len(contenders) + len(peers)
        timed = [_timed(result, peak) for result, peak in zip(results, peaks, strict=True)]
        rows = [_row(each, tuple(timed[place::count])) for place, each in enumerate([*contenders, *peers])]
        speeds = Speeds(
            cells=cells,
            left_out=left_out,
            decode_tokens=options.decode_tokens,
            memory_note=note,
            others=others.share(),
            load_average=load,
            rows=tuple(rows),
        )
        return explained(speeds, contenders)


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _runs(
    contenders: Sequence[Contender], peers: Sequence[Peer], cell: Cell, decode_tokens: int
) -> list[Callable[[], Timing]]:
    """What times each of them in a cell once, all on the same tokens."""
    ids = tokens(contenders[0].model, cell, decode_tokens)
    return [*(_run(each, ids, cell.context) for each in contenders), *(partial(each.run, cell) for each in peers)]


def _run(contender: Contender, ids: Tensor, context: int) -> Callable[[], Timing]:
    model = contender.model
    once = StaticDecoding(model, ids, context) if contender.static else partial(time_once, model, ids, context)

    def run() -> Timing:
        contender.choose()
        return once()

    return run


def _warm_up(
    model: PreTrainedModel, runs: Sequence[Callable[[], Timing]], rounds: int, progress: Progress
) -> tuple[list[int | None], str | None]:
    """Rounds that do not count; in the first the rise of the peak of memory is measured, which is slow."""
    if not rounds:
        return [None] * len(runs), None
    progress.stage("warm up", len(runs), unit="runs")
    peaks, note = [], None
    for run in runs:
        rise, note = measure_memory(model, run)
        peaks.append(rise)
        progress.step()
    take_turns(runs, lambda done: done < rounds - 1)
    return peaks, note


def _timed(rounds: Sequence[Timing], peak: int | None) -> Timed:
    prefill, decode, cache = zip(*rounds, strict=True)
    return Timed(prefill=prefill, decode=decode, cache_bytes=cache[0], peak_bytes=peak)


def _row(contender: Contender | Peer, cells: tuple[Timed, ...]) -> Row:
    if isinstance(contender, Peer):
        return Row(
            name=contender.name, dtype="", dense=False, accuracy=None, static=False, kernels={},
            parameter_bytes=contender.parameter_bytes, cells=cells,
        )  # fmt: skip
    contender.choose()
    model = contender.model
    return Row(
        name=contender.name,
        dtype=dtype_name(model.dtype),
        dense=not is_packed(model) if contender.dense is None else contender.dense,
        accuracy=accuracy_of(model),
        static=contender.static,
        kernels=kernels_used(model),
        parameter_bytes=parameter_bytes(model),
        cells=cells,
    )
