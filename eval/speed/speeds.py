"""`Speeds`: rows that took turns, by batch and context; in the JSON of `llmquant bench` and of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmquant.eval.speed.throughput import Cell
from llmquant.eval.statistics import Spread, spread

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One row in one cell: tokens per second of each round, and memory."""

    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    cache_bytes: int | None  # of keys and values at the end
    peak_bytes: int | None  # rise of the peak of memory, cache included

    def of(self, phase: Phase) -> tuple[float, ...]:
        """Tokens per second of each round in one phase."""
        return self.prefill if phase == "prefill" else self.decode

    def speed(self, phase: Phase) -> Spread:
        """Tokens per second."""
        return spread(self.of(phase))

    def over(self, other: Timed, phase: Phase) -> Spread:
        """How many times as fast as another row in the same cell, round by round; above 1 is faster."""
        return spread([one / two for one, two in zip(self.of(phase), other.of(phase), strict=True)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Slower:
    """Where a row was slower than a dense one, and what the run shows of why."""

    cell: Cell
    phase: Phase
    against: str  # name of the dense row, the fastest that was faster
    packed: tuple[float, float]  # seconds of a pass in the layers that the row packs, in itself and in the dense row
    kept: tuple[float, float]  # in other linear layers
    rest: tuple[float, float]  # attention, norms, Python
    because: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of one contender."""

    name: str  # dtype, scheme, or folder
    dtype: str  # in which it computes; empty for another program, which decides that itself
    dense: bool  # whether it is not quantized, so that others are compared with it
    accuracy: str | None  # of its kernels, "exact" or "fast"; None where there is no such choice
    static: bool  # whether the cache had a fixed size; on a CUDA device decoding is a CUDA graph then
    kernels: dict[str, int]  # packed layers by kernel; none for a dense model, which torch runs
    parameter_bytes: int  # memory of weights
    cells: tuple[Timed, ...]  # in the order of `Speeds.cells`
    slower: tuple[Slower, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Rows that took turns in the same rounds: each compares with the first and, if packed, with the fastest dense one.

    Numbers in the same place of any two rows of a cell come from the same round.
    """

    cells: tuple[Cell, ...]  # that were timed
    left_out: tuple[str, ...]  # cells and dtypes that were not, and why
    decode_tokens: int
    memory_note: str | None  # how the rise of the peak was measured
    others: float | None  # share of all processors that other programs kept busy meanwhile, where the system tells
    load_average: float | None  # processes that wanted to run in the minute before it began
    rows: tuple[Row, ...]

    def fastest(self, place: int, phase: Phase, *, static: bool = False) -> Row | None:
        """The dense row that is the fastest in a cell, by its number, with such a cache."""
        dense = (row for row in self.rows if row.dense and row.static == static)
        return max(dense, key=lambda row: row.cells[place].speed(phase).median, default=None)

    def against(self, row: Row, place: int, phase: Phase) -> list[Row]:
        """What a row is compared with in a cell, never itself."""
        first, fastest = self.rows[0], None if row.dense else self.fastest(place, phase, static=row.static)
        return [each for each in (first, fastest if fastest is not first else None) if each and each is not row]
