"""Where the KL comes from: one quantized unit at a time in the baseline, and one unit put back in the quantized model.

All units on all windows would take hundreds of forwards, so the search narrows: every block alone on few windows, then
every unit of the worst blocks on the same ones, then the worst units, and those with a fault, on all windows both ways.
A run starts at the block of its unit (see `tails`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from llmquant.data.windows import Windows
from llmquant.debugging.tails import Tails
from llmquant.debugging.twins import Twins, Unit
from llmquant.errors import QuantizationError
from llmquant.eval.scoring import Reference, TokenScores, batches, logits
from llmquant.eval.statistics import Estimate, Floats, cluster_bootstrap, cluster_sums
from llmquant.progress import Progress

_SCREENING = 2.0  # forwards over all windows that the search among blocks may take
_BLOCKS = 4  # whose units are looked at one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCost:
    """A unit on all windows.

    Attributes:
        modules: that are exchanged; `quantized` those of them that a recipe names.
        rewritten: see `twins.Unit`.
        alone: KL of the baseline with this unit quantized.
        kept: KL of the quantized model with this unit as the baseline has it.
        gain: by how much that is less than the quantized model's, paired by window.
        best: whether it gains most, or its gain cannot be told apart from that, paired by window.
    """

    name: str
    modules: tuple[str, ...]
    quantized: tuple[str, ...]
    block: int | None
    scheme: str
    rewritten: bool
    alone: Estimate
    kept: Estimate
    gain: Estimate
    best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBudget:
    """What was found, and how.

    Attributes:
        kl: of the whole quantized model.
        by_block: of the baseline with one block quantized, on the first `screened` windows; -1 is what lies outside.
        by_unit: of the baseline with one unit quantized, on the same windows, for those that were looked at.
        units: what was measured on all windows, the one that gains most first.
        note: what was run, in words.
    """

    kl: Estimate
    screened: int
    by_block: dict[int, float]
    by_unit: dict[str, float]
    units: tuple[UnitCost, ...]
    note: str


Variant = tuple[Sequence[str], Mapping[str, nn.Module]]
"""Names of modules and what stands there instead."""


class Tally:
    """The mean KL over all scored tokens, which come batch by batch."""

    def __init__(self) -> None:
        self._sums: list[Floats] = []
        self._counts: list[Floats] = []

    def add(self, scores: TokenScores) -> None:
        """Add a batch of whole windows."""
        sums, counts = cluster_sums(scores.kl, scores.window)
        self._sums.append(sums)
        self._counts.append(counts)

    @property
    def sums(self) -> Floats:
        """(windows,) of KL."""
        return np.concatenate(self._sums)

    @property
    def counts(self) -> Floats:
        """(windows,) of tokens."""
        return np.concatenate(self._counts)

    @property
    def mean(self) -> float:
        """Nats per token."""
        return float(self.sums.sum() / self.counts.sum())

    def estimate(self) -> Estimate:
        """With its 95 % interval, windows as the unit."""
        return cluster_bootstrap(self.sums, self.counts, least=0.0)

    def change_to(self, other: Tally) -> Estimate:
        """How much more the other is, on the same windows: paired, so far narrower than either."""
        return cluster_bootstrap(other.sums - self.sums, self.counts)


class Bench:
    """Runs changed models over windows, batch by batch."""

    def __init__(self, twins: Twins, windows: Windows, progress: Progress) -> None:
        self.twins, self.windows, self.progress = twins, windows, progress
        self._skips = True
        self.baseline_modules = twins.modules_of(twins.baseline)
        self.quantized_modules = twins.modules_of(twins.quantized)

    @torch.inference_mode()
    def measure(
        self, alone: Sequence[Variant] = (), kept: Sequence[Variant] = (), *, windows: int | None = None, stage: str
    ) -> tuple[Tally, list[Tally], list[Tally]]:
        """KL of the quantized model, of the baseline with each of `alone`, of the quantized model with each of `kept`.

        `windows` takes only the first.
        """
        whole, first, second = Tally(), [Tally() for _ in alone], [Tally() for _ in kept]
        count = len(self.windows) if windows is None else windows
        chosen = Windows(self.windows.ids[:count], self.windows.scored[:count], self.windows.protocol)
        self.progress.stage(stage, count * (2 + len(alone) + len(kept)), unit="runs")
        for begin, ids, scored in batches(self.twins.baseline, chosen, None):
            baseline = self._tails(self.twins.baseline, ids)
            reference = Reference(baseline.logits, ids, scored, first_window=begin)
            self.progress.step(steps=len(ids))
            for tally, scores in zip(first, self._runs(baseline, self.twins.baseline, alone, reference), strict=True):
                tally.add(scores)
            del baseline
            quantized = self._tails(self.twins.quantized, ids) if kept else None
            whole_logits = quantized.logits if quantized else logits(self.twins.quantized, ids)
            whole.add(self._finite(reference.score(whole_logits)))
            self.progress.step(steps=len(ids))
            if quantized is not None:
                runs = self._runs(quantized, self.twins.quantized, kept, reference)
                for tally, scores in zip(second, runs, strict=True):
                    tally.add(scores)
        return whole, first, second

    def _finite(self, scores: TokenScores) -> TokenScores:
        """Those of the quantized model, which are numbers everywhere or there is nothing to compare."""
        if not scores.finite.all():
            sound = np.isfinite(scores.nll_baseline).all()
            who, model = ("quantized model", self.twins.quantized) if sound else ("baseline", self.twins.baseline)
            raise QuantizationError(
                f"the {who} {model.name_or_path} gives NaN or Inf, so that nothing can be measured; check its weights "
                "with `llmquant inspect`, or fetch it again"
            )
        return scores

    def _tails(self, model: nn.Module, ids: Tensor) -> Tails:
        tails = Tails(model, self.twins.blocks(model), ids)  # pyright: ignore[reportArgumentType]
        self._skips = self._skips and tails.can_skip()
        return tails

    def _runs(
        self, tails: Tails, model: nn.Module, variants: Sequence[Variant], reference: Reference
    ) -> Iterator[TokenScores]:
        for names, modules in variants:
            with self.twins.exchanged(model, names, modules):
                yield reference.score(tails.from_block(self._start(names) if self._skips else 0))
            self.progress.step(steps=len(tails.ids))

    def _start(self, names: Sequence[str]) -> int:
        """The first block that has to run."""
        blocks = {name: info.block for name in names for info in self.twins.inventory.modules if info.name == name}
        inside = [block for block in blocks.values() if block is not None]
        head = self.twins.baseline.get_output_embeddings()
        outside = [name for name, block in blocks.items() if block is None]
        if any(self.twins.baseline.get_submodule(name) is not head for name in outside):
            return 0
        return min(inside, default=len(self.twins.blocks(self.twins.baseline)))

    def alone(self, unit: Unit) -> Variant:
        """The quantized unit in the baseline."""
        return unit.modules, self.quantized_modules

    def kept(self, unit: Unit) -> Variant:
        """The baseline's unit in the quantized model."""
        return unit.modules, self.baseline_modules


def find_costs(bench: Bench, *, suspects: Sequence[str], most: int) -> ErrorBudget:
    """Find the units that cost most.

    Args:
        bench: the models.
        suspects: modules with a fault, whose units are measured in any case.
        most: units that are measured on all windows, besides these.
    """
    units = bench.twins.units
    groups: dict[int, list[Unit]] = {}
    for unit in units:
        groups.setdefault(-1 if unit.block is None else unit.block, []).append(unit)
    screened = max(1, min(len(bench.windows), round(2 * _SCREENING * len(bench.windows) / len(groups))))
    variants = [
        (tuple(n for unit in members for n in unit.modules), bench.quantized_modules) for members in groups.values()
    ]
    _, found, _ = bench.measure(variants, windows=screened, stage="blocks")
    by_block = {block: tally.mean for block, tally in zip(groups, found, strict=True)}
    worst = sorted(by_block, key=by_block.__getitem__, reverse=True)[:_BLOCKS]
    candidates = [unit for block in worst for unit in groups[block]]
    _, found, _ = bench.measure([bench.alone(unit) for unit in candidates], windows=screened, stage="units")
    by_unit = {unit.name: tally.mean for unit, tally in zip(candidates, found, strict=True)}
    chosen = sorted(candidates, key=lambda unit: by_unit[unit.name], reverse=True)[:most]
    chosen += [unit for unit in units if unit not in chosen and set(suspects) & set(unit.modules)]
    whole, alone, kept = bench.measure(
        [bench.alone(unit) for unit in chosen], [bench.kept(unit) for unit in chosen], stage="worst units"
    )
    best = min(kept, key=lambda tally: tally.mean)
    costs = [
        _cost(bench.twins, unit, whole, one, two, best) for unit, one, two in zip(chosen, alone, kept, strict=True)
    ]
    note = (
        f"each of {len(groups)} blocks alone on {_windows(screened)}, then each of {len(candidates)} units of the "
        f"worst {len(worst)}, then {len(chosen)} units on all {_windows(len(bench.windows))}"
    )
    ordered = sorted(costs, key=lambda each: each.gain.value, reverse=True)
    return ErrorBudget(
        kl=whole.estimate(), screened=screened, by_block=by_block, by_unit=by_unit, units=tuple(ordered), note=note
    )


def _cost(twins: Twins, unit: Unit, whole: Tally, alone: Tally, kept: Tally, best: Tally) -> UnitCost:
    behind = best.change_to(kept).low
    return UnitCost(
        name=unit.name,
        modules=unit.modules,
        quantized=_named(twins, unit),
        block=unit.block,
        scheme=unit.scheme,
        rewritten=unit.rewritten,
        alone=alone.estimate(),
        kept=kept.estimate(),
        gain=kept.change_to(whole),
        best=kept is best or (behind is not None and behind <= 0),
    )


def _named(twins: Twins, unit: Unit) -> tuple[str, ...]:
    """What a rule of a recipe would name: a tied weight by its owner."""
    tied = {info.name for info in twins.inventory.modules if info.tied_to in unit.modules}
    return tuple(name for name in unit.modules if name not in tied and (name in twins.schemes or not twins.schemes))


def _windows(count: int) -> str:
    return f"{count} window{'' if count == 1 else 's'}"
