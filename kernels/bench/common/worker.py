"""`python -m llmquant.kernels.bench.common.worker`: checks and times cell after cell, and tells each step.

It must be expected to die or hang: a kernel that reads where it must not ends every later use of the GPU by the same
process. So it keeps nothing that is not told at once; watch.py starts another one without the kernel at fault.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection
from typing import Any, Protocol

import torch

from llmquant.kernels.bench.common.contender import Call, Contender, DeadContextError, said
from llmquant.kernels.bench.common.plan import CPU, Cell, Plan
from llmquant.kernels.bench.common.rows import Entry, Sample, rows_of
from llmquant.kernels.bench.common.watch import Tell, serve
from llmquant.kernels.bench.common.weights import Shape
from llmquant.kernels.gpu.fallback import fallbacks

_DEAD = 3  # exit code: another process has to go on


class Bench(Protocol):
    """A place to measure: cpu/measure.py or gpu/measure.py."""

    absent: dict[str, str]  # peers that cannot take part, and why

    def contenders(self, shape: Shape) -> list[Contender]:
        """Everybody with a weight of that shape; torch's dense product first."""
        ...

    def times(self, running: list[tuple[Contender, list[Call]]], rows: int) -> tuple[Sample, list[Sample | str]]:
        """Let all calls take turns with reads of memory; of each its times, or why there are none."""
        ...

    def check_alive(self) -> None:
        """After an exception: raise `DeadContextError` if nothing can go on in this process."""
        ...


class Session:
    """One process's part of a run, but for cells that are `done`, and steps (`excluded`) that ended a process.

    `tell` is given every result and, before each step, its name, as plain data; all before `deadline`, a time.time().
    """

    def __init__(
        self, plan: Plan, bench: Bench, tell: Tell, deadline: float, done: Collection[str], excluded: Collection[str]
    ) -> None:
        self.plan, self.bench, self.tell, self.deadline = plan, bench, tell, deadline
        self.done, self.excluded = done, excluded

    def run(self) -> None:
        """Do everything that is left.

        Raises:
            DeadContextError: if another process has to go on.
        """
        self.tell({"peers": dict.fromkeys(self.plan.peers, "takes part") | self.bench.absent})
        took: dict[Shape, float] = {}
        contenders: list[Contender] = []
        shape: Shape | None = None
        for cell in self.plan.cells():
            # Twice as many rows take at most about twice as long as those before.
            if cell.name in self.done or time.time() + 2 * took.get(cell.shape, 1.0) > self.deadline:
                continue
            began = time.time()
            try:
                if cell.shape != shape:
                    contenders.clear()
                    shape, contenders = cell.shape, self.bench.contenders(cell.shape)
                self._cell(cell, contenders)
            except DeadContextError:
                raise
            except Exception as problem:  # noqa: BLE001 - the other cells are to be measured too
                self.bench.check_alive()
                self.tell({"failure": f"{cell.name}: {said(problem)}"})
            took[cell.shape] = time.time() - began
            self.tell({"done": cell.name})
        self.tell({"fallbacks": fallbacks()})

    def _cell(self, cell: Cell, contenders: list[Contender]) -> None:
        with torch.inference_mode():
            entries = [self._checked(contender, cell) for contender in contenders]
            running = [entry for entry in entries if entry.calls]
            self.tell({"begin": f"all @ {cell.name}"})
            stream, taken = self.bench.times([(entry.contender, entry.calls) for entry in running], cell.m)
        for entry, found in zip(running, taken, strict=True):
            if isinstance(found, str):
                entry.failed = found
            else:
                entry.times = found
        self.tell({"rows": rows_of(entries, stream, cell, self.plan.threads)})

    def _checked(self, contender: Contender, cell: Cell) -> Entry:
        """Check a kernel, and bind it to its copies of the weight."""
        step = f"{contender.name} @ {cell.name}"
        if step in self.excluded:
            return Entry(contender, failed="it ended or hung the measuring process")
        self.tell({"begin": step})
        entry = Entry(contender)
        try:
            if contender.check:
                verdict = contender.check(cell.m)
                entry.error, entry.problem = verdict.error, verdict.problem
            if not entry.problem:
                entry.calls = contender.bind(cell.m)
        except Exception as problem:  # noqa: BLE001 - the others are to be timed all the same
            self.bench.check_alive()
            entry.failed = said(problem)
        return entry


def run(task: dict[str, Any], tell: Tell) -> None:
    """Do what is left of a run."""
    plan = Plan.read(task["plan"])
    try:
        if plan.where == CPU:
            from llmquant.kernels.bench.cpu.measure import CpuBench as Place
        else:
            from llmquant.kernels.bench.gpu.measure import GpuBench as Place
        Session(plan, Place(plan), tell, task["deadline"], task["done"], task["excluded"]).run()
    except DeadContextError as error:
        print(said(error), file=sys.stderr, flush=True)
        os._exit(_DEAD)  # what clears up at a usual exit would call the GPU, which answers nobody


if __name__ == "__main__":
    serve(run)
