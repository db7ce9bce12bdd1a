"""The recipe edit that gives a unit back what it lost, and what it will cost and bring.

The KL is measured, with the weights that the edited recipe will give: those of the baseline for `keep`, and the same
rounded to nearest for a wider scheme. The size is that of the plan.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml
from torch import nn

from llmquant.algorithms.rounding import rtn
from llmquant.compat.linears import is_conv1d
from llmquant.debugging.budget import Bench, ErrorBudget, UnitCost, Variant
from llmquant.debugging.twins import matrix_of
from llmquant.errors import PlanError, RecipeError
from llmquant.eval.statistics import Estimate
from llmquant.models.inventory import Inventory
from llmquant.nn.storage import frozen
from llmquant.recipe.load import dump_recipe, recipe_of_result
from llmquant.recipe.plan import make_plan
from llmquant.recipe.schema import VERSION
from llmquant.spec import KEEP, Scheme
from llmquant.statistics.base import LayerStatistics

_AS_GOOD = 0.8  # share of the gain of keeping from which on a wider scheme, which costs less, is advised
WIDER_BITS = 8


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of a unit."""

    unit: UnitCost
    scheme: Scheme

    @property
    def rule(self) -> dict[str, Any]:
        """For the recipe."""
        match = list(self.unit.quantized)
        return {"match": match[0] if len(match) == 1 else match, "scheme": self.scheme.name}


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Rules to put behind those of the recipe, and what they do.

    Attributes:
        units: names of the units that change, with their new schemes.
        rules: as YAML.
        dropped: older rules that say something of these units by name, and go, in words.
        recipe: the whole edited recipe, as YAML.
        kl_before: of the quantized model; `kl_after` with the edit, measured with all of it at once.
        bits_before: per weight of the whole checkpoint; `bits_after` with the edit.
    """

    units: tuple[tuple[str, str], ...]
    rules: str
    dropped: tuple[str, ...]
    recipe: str
    kl_before: Estimate
    kl_after: Estimate
    bits_before: float
    bits_after: float

    @property
    def bits(self) -> float:
        """More bits per weight."""
        return self.bits_after - self.bits_before


class Sizes:
    """The recipe of the quantized model with more rules, and the size that its plan says."""

    def __init__(self, recipe: Mapping[str, Any] | None, schemes: Mapping[str, str], inventory: Inventory) -> None:
        """Take the recipe of llmquant.json, or make one that says what another tool's checkpoint holds."""
        self._inventory = inventory
        self._data = recipe or _recipe_of(schemes)
        self.recipe = recipe_of_result(self._data)
        self.bits = self.bits_with(())

    def with_rules(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The edited recipe, as data, for its methods may be files or not here.

        What older rules say of these modules by name goes, as a rule that decides nothing is an error; and a limit on
        the size, as it may be in the way.
        """
        data = dict(self._data)
        named = {name for choice in choices for name in choice.unit.quantized}
        older = [_without(rule, named) for rule in data["rules"]]
        data["rules"] = [*filter(None, older), *(choice.rule for choice in choices)]
        if choices:
            data["name"] = f"{data['name']}-edited"
            data.pop("description", None)
            data["budget"] = {k: v for k, v in (data.get("budget") or {}).items() if k != "bits_per_weight"}
        return data

    def bits_of(self, units: Sequence[UnitCost]) -> dict[str, float]:
        """More bits per weight with each unit at 16 bits, by its name; without those that no recipe can keep."""
        found: dict[str, float] = {}
        for unit in units:
            with suppress(PlanError, RecipeError):
                found[unit.name] = self.bits_with([Choice(unit, KEEP)]) - self.bits
        return found

    def bits_with(self, choices: Sequence[Choice]) -> float:
        """Bits per weight.

        Raises:
            PlanError: if the edited recipe does not fit the model, such as readers that want one scheme for all.
        """
        return make_plan(recipe_of_result(self.with_rules(choices)), self._inventory).bits_per_weight


def _without(rule: dict[str, Any], named: set[str]) -> dict[str, Any] | None:
    match = [rule["match"]] if isinstance(rule["match"], str) else rule["match"]
    left = [word for word in match if word not in named]
    return {**rule, "match": left} if left else None


def _recipe_of(schemes: Mapping[str, str]) -> dict[str, Any]:
    by_scheme: dict[str, list[str]] = {}
    for name, scheme in schemes.items():
        by_scheme.setdefault(scheme, []).append(name)
    rules = [{"match": names, "scheme": scheme} for scheme, names in by_scheme.items()]
    return {"version": VERSION, "name": "as-stored", "rules": rules, "portable": False}


def find_edit(
    bench: Bench, budget: ErrorBudget, sizes: Sizes, *, suspects: Sequence[str], bits: float | None
) -> tuple[Edit | None, str]:
    """The best edit: of the unit that gains most, of those with a fault if there are any (`suspects` are modules); of
    those whose gain cannot be told apart from the most, the one that takes the fewest bits.

    With `bits` per weight to spend it is of as many as they allow, greedily by gain per bit.

    Returns why there is none, too, in words; empty if there is one.
    """
    options = list(_options(budget, sizes))
    if not options:
        return None, "nothing that was measured gains when it is kept, or no recipe that keeps it fits the model"
    if bits is None:
        faulty = next((choice.unit for choice, _ in options if set(suspects) & set(choice.unit.modules)), None)
        first = faulty or _cheapest(options)
        sets = [[choice] for choice, _ in options if choice.unit is first]
    else:
        sets = [chosen for widest in (False, True) if (chosen := _greedy(options, sizes, bits, keep=widest))]
        if not sets:
            least = min(cost for _, cost in options)
            return None, f"{bits:g} bits per weight buy nothing: the smallest edit takes {least:.3f}"
    found = [_edit(chosen, tally, whole, sizes) for chosen, tally, whole in _measured(bench, sets)]
    best = max(found, key=lambda edit: edit.kl_before.value - edit.kl_after.value)
    most = best.kl_before.value - best.kl_after.value
    good = [edit for edit in found if edit.kl_before.value - edit.kl_after.value >= _AS_GOOD * most]
    return min(good, key=lambda edit: edit.bits_after), ""


def _cheapest(options: Sequence[tuple[Choice, float]]) -> UnitCost:
    kept = [(bits, choice.unit) for choice, bits in options if choice.scheme.is_keep]
    best = [each for each in kept if each[1].best] or kept
    return min(best, key=lambda each: each[0])[1] if best else options[0][0].unit


def _options(budget: ErrorBudget, sizes: Sizes) -> Iterator[tuple[Choice, float]]:
    """What could be done with each unit, the one that gains most first, and the bits that it takes."""
    for unit in budget.units:
        for scheme in (_wider(unit), KEEP) if unit.gain.value > 0 else ():
            if scheme is None:
                continue
            choice = Choice(unit, scheme)
            try:
                yield choice, sizes.bits_with([choice]) - sizes.bits
            except (PlanError, RecipeError):
                continue


def _wider(unit: UnitCost) -> Scheme | None:
    """8 bits in the same groups, where it has fewer."""
    try:
        scheme = Scheme.parse(unit.scheme)
    except ValueError:  # several, or another tool's
        return None
    if unit.rewritten or scheme.activations or scheme.bits >= WIDER_BITS:
        return None
    return Scheme(WIDER_BITS, scheme.granularity, scheme.group_size, scheme.symmetric)


def _greedy(options: Sequence[tuple[Choice, float]], sizes: Sizes, bits: float, *, keep: bool) -> list[Choice]:
    """Units by gain per bit, as long as they fit into `bits`."""
    ordered = sorted(options, key=lambda each: each[0].unit.gain.value / max(each[1], 1e-9), reverse=True)
    chosen: list[Choice] = []
    for choice, _ in ordered:
        taken = any(each.unit is choice.unit for each in chosen)
        if choice.scheme.is_keep == keep and not taken and _fits([*chosen, choice], sizes, bits):
            chosen.append(choice)
    return chosen


def _fits(choices: Sequence[Choice], sizes: Sizes, bits: float) -> bool:
    try:
        return sizes.bits_with(choices) - sizes.bits <= bits
    except PlanError:
        return False


def _measured(bench: Bench, sets: Sequence[Sequence[Choice]]) -> Iterator[tuple[Sequence[Choice], Estimate, Estimate]]:
    variants = [_variant(bench, chosen) for chosen in sets]
    whole, _, found = bench.measure(kept=variants, stage="edits")
    for chosen, tally in zip(sets, found, strict=True):
        yield chosen, tally.estimate(), whole.estimate()


def _variant(bench: Bench, chosen: Sequence[Choice]) -> Variant:
    modules: dict[str, nn.Module] = {}
    for choice in chosen:
        for name in choice.unit.modules:
            module = bench.baseline_modules[name]
            modules[name] = module if choice.scheme.is_keep else _rounded(module, choice.scheme, bench)
    return tuple(modules), modules


def _rounded(module: nn.Module, scheme: Scheme, bench: Bench) -> nn.Module:
    """The module with its weight rounded to nearest."""
    weight, dtype = matrix_of(module), bench.twins.inventory.dtype
    assert weight is not None
    result = rtn.quantize(weight.to(dtype), LayerStatistics(), scheme, rtn.Options(), scale_dtype=dtype)
    dense = result.quantized.dequantize().to(weight.dtype)
    changed = copy.copy(module)
    changed._parameters = dict(module._parameters)
    changed.weight = frozen(dense.T.contiguous() if is_conv1d(module) else dense)
    return changed


def _edit(chosen: Sequence[Choice], after: Estimate, before: Estimate, sizes: Sizes) -> Edit:
    rules = [choice.rule for choice in chosen]
    edited = sizes.with_rules(chosen)
    left = recipe_of_result(edited).rules
    dropped = [rule for rule in sizes.recipe.rules if rule.match and rule not in left]
    return Edit(
        units=tuple((choice.unit.name, choice.scheme.name) for choice in chosen),
        rules=yaml.safe_dump(rules, sort_keys=False, width=100),
        dropped=tuple(map(str, dropped)),
        recipe=dump_recipe(edited),
        kl_before=before,
        kl_after=after,
        bits_before=sizes.bits,
        bits_after=sizes.bits_with(chosen),
    )
