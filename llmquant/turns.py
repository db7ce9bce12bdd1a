"""Measuring several things beside each other: in turn, so that a machine that slows down or is shared slows all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Measured = TypeVar("Measured")


def take_turns(runs: Sequence[Callable[[], Measured]], goes_on: Callable[[int], bool]) -> list[list[Measured]]:
    """Call all `runs` once in each round, every second round in reverse; for each round the results in their order.

    `goes_on` is asked before each round, with the number of rounds so far.
    """
    rounds: list[list[Measured]] = []
    while goes_on(len(rounds)):
        step = 1 if len(rounds) % 2 == 0 else -1
        rounds.append([run() for run in runs[::step]][::step])
    return rounds
