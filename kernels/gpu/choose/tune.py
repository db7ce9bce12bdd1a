"""Tuning for one GPU: measure the candidates of estimate.py, and keep what is right and fastest in the user's table.

What measures is an argument (tune_gpu.py has the one for real GPUs), so that choosing and writing can be tested without
a GPU. For each weight and number of rows all candidates are measured once; the best three, and what would run without a
table, are then measured twice more in turn, and the median of the three times counts. A winner that is not at least 2 %
faster than what would run anyway is noise, and not taken. A candidate that computes something wrong never wins.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from llmquant.kernels.gpu.choose import dispatch, estimate, table
from llmquant.kernels.gpu.choose.config import DENSE, Config
from llmquant.kernels.gpu.weight import Format
from llmquant.progress import Progress
from llmquant.turns import take_turns

ROWS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
#: Relative error in Frobenius norm that a result may have; a result in bf16 has 1.7e-3, one from a dense weight 2.2e-3,
#: and activations of 8 bits per block of 128 some 7e-3.
ALLOWED = {"w4a16": 4e-3, "w8a16": 4e-3, "w4a8": 2e-2, "w8a8": 4e-3}
_MOST_ROWS = 1 << 30  # what is best for the most rows measured serves all beyond
_FINALISTS, _AGAIN = 3, 2
_GAIN = 0.98
_WITH_PDL = ("sm90", "sm10", "sm12")


class CannotRun(Exception):
    """A configuration that does not compile or does not fit this GPU; the message says why, without numbers."""


@dataclass(frozen=True, slots=True)
class Case:
    """A weight to tune for."""

    kind: str  # w4a16, w8a16, w4a8 or w8a8
    form: Format
    n: int  # outputs; of all weights together, where a launch has several

    @property
    def key(self) -> tuple[str, int, int, int]:
        """What tells cases apart in a table: kind, n, k, unit."""
        return self.kind, self.n, self.form.in_features, self.form.unit


@dataclass(frozen=True, slots=True)
class Timing:
    """What measuring a configuration gave: microseconds of a call, and its relative error."""

    us: float
    error: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was found for a case and a number of rows."""

    case: Case
    rows: tuple[int, int]  # the least and the most that it holds for; the most is what was measured
    config: Config | None  # the fastest; None if nothing ran
    us: float | None  # of a call with it
    untuned: Config  # what would run without a table
    us_untuned: float | None  # None if that did not run
    refused: dict[str, int] = field(default_factory=dict)  # candidates that did not run or were wrong, by reason


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What was found on a GPU."""

    gpu: str
    file: Path  # the table that holds it from now on
    found: tuple[Tuned, ...]  # one for each weight and number of rows

    def to_json(self) -> str:
        """The report as JSON text; a configuration is null where nothing ran, and zeros for a dense weight."""
        data = {"gpu": self.gpu, "file": str(self.file), "found": [asdict(one) for one in self.found]}
        return json.dumps(data, indent=2) + "\n"


Measure = Callable[[Case, int, Config], Timing]


def tune(
    cases: Sequence[Case],
    arch: str,
    processors: int,
    measure: Measure,
    rows: Sequence[int] = ROWS,
    progress: Progress | None = None,
) -> list[Tuned]:
    """Find the fastest configurations.

    Args:
        cases: the weights; those of one key are tuned once.
        arch: of the GPU, which has so many `processors`.
        measure: one call; raises `CannotRun`.
        rows: numbers of rows to measure, ascending powers of two; each also stands for those down to the one before.
        progress: is told of each weight and number of rows.
    """
    each = list({case.key: case for case in cases}.values())
    found: list[Tuned] = []
    progress = progress or Progress()
    progress.stage("tune", len(each) * len(rows), unit="weights")
    for case in each:
        least = 1
        for m in rows:
            found.append(_tune_one(case, (least, m), arch, processors, measure))
            least = m + 1
            progress.step()
    return found


def _tune_one(case: Case, rows: tuple[int, int], arch: str, processors: int, measure: Measure) -> Tuned:
    m, refused = rows[1], Counter()
    configs = estimate.candidates(arch, case.kind, m, *case.key[1:], processors)
    times: dict[Config, list[float]] = {}

    def run(config: Config, again: bool = True) -> None:
        if again and config not in times:
            return
        try:
            timing = measure(case, m, config)
        except CannotRun as error:
            problem = str(error)
        else:
            problem = "" if timing.error <= ALLOWED[case.kind] else "wrong result"  # NaN is wrong too
            times.setdefault(config, []).append(timing.us)
        if problem:
            refused[problem] += 1
            times.pop(config, None)

    for config in configs:
        run(config, again=False)
    best = sorted(times, key=lambda config: times[config])[:_FINALISTS]
    overlapping = _with_pdl(best, arch)
    for config in overlapping:
        run(config, again=False)
    untuned = configs[0]
    finalists = [config for config in times if config in best or config in overlapping or config == untuned]
    take_turns([partial(run, config) for config in finalists], lambda rounds: rounds < _AGAIN)
    medians = {config: median(times[config]) for config in finalists if config in times}
    winner = min(medians, key=lambda config: medians[config], default=None)
    if winner and untuned in medians and medians[winner] > _GAIN * medians[untuned]:
        winner = untuned
    us = None if winner is None else medians[winner]
    return Tuned(case, rows, winner, us, untuned, medians.get(untuned), dict(refused))


def _with_pdl(best: Sequence[Config], arch: str) -> list[Config]:
    """The best one again, overlapping with the end of the kernel in front, where the GPU can."""
    if not best or best[0] == DENSE or not arch.startswith(_WITH_PDL):
        return []
    return [replace(best[0], pdl=True)]


def save(found: Sequence[Tuned], arch: str, processors: int, gpu: str, run: dict[str, Any]) -> Path:
    """Write what was found into the user's table, and let dispatch.py use it from now on.

    Entries of other weights stay, unless another GPU measured them. `run` says when and with what it was measured.

    Raises:
        LlmquantError: if the table that is there is damaged, or it cannot be written.
    """
    file = table.user_file(arch, processors)
    before = table.read(file) if file.exists() else table.Table(arch, processors, gpu)
    if (before.arch, before.processors, before.gpu) != (arch, processors, gpu):
        before = table.Table(arch, processors, gpu)
    entries = _entries(found)
    keys = {(entry.kind, entry.n, entry.k, entry.unit) for entry in entries}
    kept = [entry for entry in before.entries if (entry.kind, entry.n, entry.k, entry.unit) not in keys]
    table.write(file, replace(before, runs=(*before.runs, run), entries=(*entries, *kept)))
    dispatch.forget()
    return file


def _entries(found: Sequence[Tuned]) -> list[table.Entry]:
    last = {one.case.key: one.rows for one in found}
    entries = []
    for one in found:
        if one.config is None or one.us is None:
            continue
        kind, n, k, unit = one.case.key
        rows = (one.rows[0], _MOST_ROWS) if one.rows == last[one.case.key] else one.rows
        us_untuned = None if one.us_untuned is None else round(one.us_untuned, 3)
        entries.append(table.Entry(kind, rows, (n, n), (k, k), unit, one.config, round(one.us, 3), us_untuned))
    return entries
