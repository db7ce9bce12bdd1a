"""The measuring process: checks, compiles and times cell after cell, and tells each step to whoever started it.

It must be expected to die or hang: a kernel that reads where it must not ends every later use of the GPU by the same
process. So it keeps nothing that is not told at once; gpu_watch.py starts another one without the kernel at fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import nan
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.bench import gpu_facts, gpu_ours, gpu_peers, gpu_sweep
from llmquant.kernels.bench.contender import Shape
from llmquant.kernels.bench.gpu_cases import BATCHES, FORMATS, LAYERS, Cell, Plan, cells
from llmquant.kernels.bench.gpu_check import judge
from llmquant.kernels.bench.gpu_compile import Compiling, jobs, our_keys, peer_key
from llmquant.kernels.bench.gpu_floor import Ceilings, measured
from llmquant.kernels.bench.gpu_kernel import CUBLAS, OURS, Kernel
from llmquant.kernels.bench.gpu_peers_torch import Cublas
from llmquant.kernels.bench.gpu_rows import Measured, finite, rows_of
from llmquant.kernels.bench.gpu_timing import Call, Stopwatch, Times
from llmquant.kernels.bench.gpu_weights import Reference, Weight, cloned, copies, random_weight, reference
from llmquant.kernels.gpu import fallback
from llmquant.spec import Scheme

Tell = Callable[[dict[str, Any]], None]

_COMPILE_SHARE = 0.4  # of the budget that waiting for our own kernels may take
_PEER_SECONDS = 60.0  # to wait for peers to be compiled, once nothing else is left to do
_LAST_SECONDS = 4.0  # kept for the second look at the ceilings
_EAGER_ROWS = 128  # beyond it, the GPU is slower than any host
_DENSE_SCHEME = "int8"  # of the random numbers that cuBLAS multiplies


class DeadContextError(RuntimeError):
    """The GPU refuses this process from now on."""


@dataclass(frozen=True)
class Before:
    """What earlier processes of a run did.

    Attributes:
        done: names of cells and cases of the sweep that need not be done again.
        excluded: names of steps that ended a process.
        wrong: formats that failed the sweep.
    """

    done: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    wrong: frozenset[str] = frozenset()


class Session:
    """One process's part of a run.

    Args:
        plan: of the run.
        tell: is given every result and, before each step, its name, as plain data.
        deadline: time.time() at which everything must be told.
        before: what earlier processes did.
        watch: what times, and where; None in a dry run, on the CPU.
    """

    def __init__(self, plan: Plan, tell: Tell, deadline: float, before: Before, watch: Stopwatch | None) -> None:
        self.plan, self.tell, self.deadline, self.before, self.watch = plan, tell, deadline, before, watch
        self.device = watch.device if watch else "cpu"
        # Triton's interpreter, on the CPU, has no bfloat16.
        self.dtype = torch.float16 if self.device == "cpu" else torch.bfloat16
        self.ceilings: Ceilings | None = None
        self.peers = gpu_peers.found(plan)
        self.wrong = set(before.wrong)
        self._layer = ""
        self._weights: dict[str, Weight] = {}
        self._copies: dict[str, list[Any]] = {}
        self._compiling: Compiling | None = None
        self._peers_until: float | None = None
        self._late: frozenset[str] = frozenset()

    def run(self) -> None:
        """Do everything that is left.

        Raises:
            DeadContextError: if another process has to go on.
        """
        self.tell({"gpu": gpu_facts.facts()})
        there = {peer.name: peer.absent or [kernel.name for kernel in peer.kernels] for peer in self.peers}
        self.tell({"peers": there})
        if self.plan.dry:
            every = replace(self.plan, layers=LAYERS, batches=BATCHES)
            self.tell({"built": gpu_ours.built(every, gpu_ours.H200)})
        try:
            self._measure_ceilings()
            if self.device == "cuda" and not self.before.done:  # else the compilers' caches are filled
                self._compile()
            self._sweep()
            self._cells([cell for cell in cells(self.plan) if cell.name not in self.before.done])
            self._measure_ceilings()
        finally:
            self._stop_compiling()
        self.tell({"fallbacks": fallback.fallbacks()})

    def _compile(self) -> None:
        self._begin("compiling")
        try:
            self._compiling = Compiling(jobs(self.plan, self.peers))
        except Exception as problem:  # noqa: BLE001 - then everything is compiled when it is called
            self.tell({"failure": f"compiling ahead: {said(problem)}"})

    def _measure_ceilings(self) -> None:
        if self.watch is None:
            return
        self._forget()
        self._begin("ceilings")
        try:
            with self.watch.running():
                found = measured(self.watch)
        except Exception as problem:  # noqa: BLE001 - times are worth something without them
            self._still_alive()
            self.tell({"failure": f"ceilings: {said(problem)}"})
            return
        self.ceilings = self.ceilings or found
        self.tell({"ceilings": asdict(found)})
        torch.cuda.empty_cache()

    def _sweep(self) -> None:
        if self._compiling:
            self._compiling.wait([gpu_sweep.SWEEP], self._until(_COMPILE_SHARE / 2), self._begin)
        for case in gpu_sweep.cases(self.plan):
            if case.name in self.before.done | self.before.excluded:
                continue
            self._begin(case.name)
            try:
                with torch.inference_mode():
                    found = gpu_sweep.run(case, self.device)
            except Exception as problem:  # noqa: BLE001 - the other cases are to be run too
                found = gpu_sweep.Outcome(nan, [said(problem)], wrong=True)
                self._still_alive()
            if found.wrong:
                self.wrong.add(case.form.name)
            row = {"case": case.name, "form": case.form.name, **vars(found), "error": finite(found.error)}
            self.tell({"sweep": row, "done": case.name})

    def _cells(self, todo: list[Cell]) -> None:
        last: dict[str, float] = {}
        waited_until = self._until(_COMPILE_SHARE)
        while todo:
            cell = self._next(todo, waited_until)
            todo.remove(cell)
            group = f"{cell.layer} {cell.peers}"
            # Twice as many rows take at most about twice as long as those before.
            if time.time() + 2 * last.get(group, 1.0) > self.deadline - _LAST_SECONDS:
                continue
            began = time.time()
            try:
                self._cell(cell)
            except DeadContextError:
                raise
            except Exception as problem:  # noqa: BLE001 - the other cells are to be measured too
                self._still_alive()
                self._forget()
                self.tell({"failure": f"{cell.name}: {said(problem)}"})
            last[group] = time.time() - began
            self.tell({"done": cell.name})

    def _next(self, todo: list[Cell], until: float) -> Cell:
        """The first cell that is ready; else the first one, once that was waited for long enough."""
        while self._compiling:
            for cell in todo:
                # What counts is timed when nothing is compiled any more.
                last = self._is_last(cell)
                keys = None if last else our_keys(self.plan, self.plan.layers[cell.layer], cell.m)
                if not self._compiling.unfinished(keys):
                    if last:
                        self._stop_compiling()
                    return cell
            if todo[0].peers and self._peers_until is None:
                self._peers_until = time.time() + _PEER_SECONDS
            if time.time() > (self._peers_until or until):
                if self._is_last(todo[0]):
                    self._stop_compiling()
                break
            self._begin("compiling")
            time.sleep(0.5)
        return todo[0]

    def _is_last(self, cell: Cell) -> bool:
        """Whether our kernels are not measured again, beside the peers."""
        return cell.peers or not self.plan.peers

    def _stop_compiling(self) -> None:
        """What is not compiled by now stays away: it would take too long, and disturb what is timed."""
        if self._compiling:
            self._late = frozenset(self._compiling.unfinished())
            self._compiling.close()
            self._compiling = None

    def _cell(self, cell: Cell) -> None:
        shape = self.plan.layers[cell.layer]
        if cell.layer != self._layer:
            self._forget()
            self._layer = cell.layer
        x = torch.randn(cell.m, shape.k, device=self.device).to(self.dtype)
        references: dict[str, Reference] = {}
        found: list[Measured] = []
        kernels = [Cublas(), *gpu_ours.kernels(self.plan, shape, cell.m), *self._others(cell)]
        for kernel in kernels:
            reason = kernel.why_not(shape, cell.m)
            entry = Measured(kernel, failed=reason) if reason else self._prepared(kernel, cell, shape, x, references)
            if entry:
                found.append(entry)
        if self.watch:
            with self.watch.running():
                self._time([entry for entry in found if entry.calls], cell)
        rows = rows_of(found, cell, shape, self.ceilings, self._weight_bytes)
        quiet = self._compiling is None or not self._compiling.unfinished()
        self.tell({"rows": [row | {"quiet": quiet} for row in rows]})

    def _others(self, cell: Cell) -> list[Kernel]:
        if not cell.peers:
            return []
        shape = self.plan.layers[cell.layer]
        return [kernel for peer in self.peers for kernel in peer.kernels if kernel.format.fits(shape)]

    def _prepared(
        self, kernel: Kernel, cell: Cell, shape: Shape, x: Tensor, references: dict[str, Reference]
    ) -> Measured | None:
        """Check a kernel, and bind it to its copies of the weight."""
        step = f"{kernel.name} @ {cell.name}"
        if kernel.owner == OURS and kernel.form in self.wrong:
            return None  # the sweep said why
        if step in self.before.excluded:
            return Measured(kernel, failed="it ended or hung the measuring process")
        if peer_key(kernel, cell.layer) in self._late:
            return Measured(kernel, failed="it was not compiled in time")
        self._begin(step)
        try:
            with torch.inference_mode():
                weight = self._weight(kernel, shape)
                some = self._copies_of(kernel, weight)
                scheme = weight.scheme.name
                if scheme not in references:
                    references[scheme] = reference(x, weight, quantized=weight.scheme.activations is not None)
                verdict = judge(kernel, x, some[0], shape.n, references[scheme])
        except Exception as problem:  # noqa: BLE001 - the others are to be timed all the same
            self._still_alive()
            return Measured(kernel, failed=said(problem))
        calls: list[Call] = [partial(kernel.call, x, one) for one in some]
        return Measured(
            kernel, verdict.error, verdict.problem, [] if verdict.problem else calls,
            describe=kernel.describe(shape, cell.m),
        )  # fmt: skip

    def _time(self, entries: list[Measured], cell: Cell) -> None:
        watch = self.watch
        assert watch
        last = self._is_last(cell)
        running = []
        for entry in entries:
            self._begin(f"{entry.kernel.name} @ {cell.name}")
            try:
                us = watch.once(entry.calls[0])
                chain = watch.graph(entry.calls, us)
                cold = watch.cold(entry.calls) if self.plan.cold and last else ()
                eager = watch.eager(entry.calls) if self.plan.eager and last and cell.m <= _EAGER_ROWS else ()
            except Exception as problem:  # noqa: BLE001 - as above
                self._still_alive()
                entry.failed = said(problem)
                continue
            entry.times = Times((), tuple(cold), tuple(eager))
            running.append((entry, chain))
        if not running:
            return
        self._begin(f"all @ {cell.name}")
        # cuBLAS is the first of each round, and once more the last: that bounds what drifts within a round.
        chains = [chain for _, chain in running]
        again = [chain for entry, chain in running if entry.kernel.owner == CUBLAS]
        taken = watch.chains([*chains, *again], quick=not last)
        for (entry, _), times in zip(running, taken, strict=False):
            entry.times = Times(tuple(times), entry.times.cold, entry.times.eager)
            if again and entry.kernel.owner == CUBLAS:
                entry.again = tuple(taken[-1])

    def _weight(self, kernel: Kernel, shape: Shape) -> Weight:
        scheme = _DENSE_SCHEME if kernel.owner == CUBLAS else FORMATS[kernel.form].scheme
        if scheme not in self._weights:
            self._weights[scheme] = random_weight(Scheme.parse(scheme), shape, self.device, self.dtype)
        return self._weights[scheme]

    def _weight_bytes(self, kernel: Kernel, shape: Shape) -> int:
        """What a kernel reads of its weight, by the format's own count."""
        return 2 * shape.n * shape.k if kernel.owner == CUBLAS else self._weight(kernel, shape).nbytes

    def _copies_of(self, kernel: Kernel, weight: Weight) -> list[Any]:
        if kernel.layout not in self._copies:
            one = kernel.prepare(weight)
            size = self._weight_bytes(kernel, weight.shape)
            count = copies(size, self.watch.cache_bytes) if self.watch else 1
            self._copies[kernel.layout] = [one, *(cloned(one) for _ in range(count - 1))]
        return self._copies[kernel.layout]

    def _forget(self) -> None:
        self._weights.clear()
        self._copies.clear()
        self._layer = ""
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _begin(self, step: str) -> None:
        self.tell({"begin": step})

    def _until(self, share: float) -> float:
        return time.time() + share * (self.deadline - time.time())

    def _still_alive(self) -> None:
        """After an exception: whether the GPU still answers.

        Raises:
            DeadContextError: if it does not.
        """
        if self.device != "cuda":
            return
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device="cuda").item()
        except RuntimeError as error:
            raise DeadContextError(said(error)) from error


def said(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
