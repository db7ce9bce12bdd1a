"""A recipe applied to a model: the fate of every module, decided before any work and strict about every doubt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from llmquant.errors import PlanError
from llmquant.formats import find
from llmquant.formats.base import Format
from llmquant.models.inventory import Inventory, ModuleInfo
from llmquant.notebook import html_table
from llmquant.recipe.checks import Decision, Problems, check_budget, check_decisions, check_rules
from llmquant.recipe.rows import MatrixRow as MatrixRow  # for those who import from here
from llmquant.recipe.rows import PlanRow as PlanRow
from llmquant.recipe.schema import Recipe, Rule, recipe_to_dict
from llmquant.recipe.summary import SummaryRow, summarize
from llmquant.spec import KEEP
from llmquant.words import bytes_text, dtype_name

NO_RULE = "no rule"
_WORTH_A_WARNING = 0.01  # of the result
EXPERTS_STAY = "experts cannot be quantized yet, so they stay"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe means for one model: rows in the order of the inventory."""

    recipe: Recipe
    inventory: Inventory
    rows: tuple[PlanRow, ...]

    @property
    def format(self) -> Format:
        """How the result is stored."""
        return find(self.recipe.format)

    @property
    def quantized(self) -> tuple[MatrixRow, ...]:
        """The rows that own a weight that changes."""
        return tuple(row for row in self.rows if isinstance(row, MatrixRow))

    @property
    def bytes_before(self) -> int:
        """Bytes of all tensors of the model as it is."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes of all tensors of the result; file headers come on top."""
        return sum(row.bytes_after for row in self.rows)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What nobody should overlook, a sentence each: experts that stay, with their share of the result."""
        warnings = []
        experts = sum(row.bytes_after for row in self.rows if row.module.kind == "experts")
        if experts:
            warnings.append(
                f"the experts stay in {dtype_name(self.inventory.dtype)}: {experts:,} of "
                f"{self.bytes_after:,} bytes of the result, {experts / self.bytes_after:.1%}; llmquant cannot quantize "
                "them yet"
            )
        outside = [row for row in self.rows if row.module.kind in ("linear", "conv1d") and row.module.block is None]
        outside = [row for row in outside if row.scheme.is_keep and "lm_head" not in row.module.sets]
        size = sum(row.bytes_after for row in outside)
        if size > self.bytes_after * _WORTH_A_WARNING:
            warnings.append(
                f"linear layers outside of the decoder blocks stay: {size:,} of {self.bytes_after:,} bytes of the "
                f"result, {size / self.bytes_after:.1%}; the first is {outside[0].module.name}"
            )
        if self.inventory.untried:
            warnings.append(
                f"whether the model's code reads weights that would be packed is not known ({self.inventory.untried}); "
                "if the result does not run, keep the layer that the error names"
            )
        return tuple(warnings)

    @property
    def bits_per_weight(self) -> float:
        """Bits per parameter of the whole result: kept modules, scales, biases and everything else included."""
        return 8 * self.bytes_after / self.inventory.parameters

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data for JSON."""
        return {
            "recipe": recipe_to_dict(self.recipe),
            "architecture": self.inventory.architecture,
            "model_type": self.inventory.model_type,
            "dtype": dtype_name(self.inventory.dtype),
            "blocks": self.inventory.blocks,
            "parameters": self.inventory.parameters,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "bits_per_weight": self.bits_per_weight,
            "warnings": list(self.warnings),
            "readers": {name: verdict.ok for name, verdict in self.format.readers(self).items()},
            "rows": [row.to_dict() for row in self.rows],
        }

    def _repr_html_(self) -> str:
        rows = [
            (row.name, f"{row.count} x {'x'.join(map(str, row.shape))}".removeprefix("1 x "), row.scheme.name,
             row.rounding, short_rule(row.rule), bytes_text(row.bytes_before), bytes_text(row.bytes_after),
             bits_text(row))
            for row in summarize(self.rows)
        ]  # fmt: skip
        title = (
            f"{self.inventory.architecture}, {self.recipe.name}: {bytes_text(self.bytes_before)} -> "
            f"{bytes_text(self.bytes_after)}, {self.bits_per_weight:.3f} bits per weight"
        )
        heads = ("module", "shape", "scheme", "rounding", ">rule", ">before", ">after", ">bits")
        return html_table(title, heads, rows, (f"warning: {warning}" for warning in self.warnings))


def short_rule(rule: str) -> str:
    """A rule's number, or "-" where none decided."""
    return "-" if rule == NO_RULE else rule.split(":")[0].removeprefix("rule ")


def bits_text(row: PlanRow | SummaryRow) -> str:
    """Bits per weight; a tied module has no weight of its own."""
    return f"{row.bits_per_weight:.2f}" if row.bits_per_weight else "tied"


def make_plan(recipe: Recipe, inventory: Inventory) -> Plan:
    """Decide the fate of every module.

    The last rule that matches a module decides; without one it is kept.

    Raises:
        PlanError: with every problem found: rules that match nothing or are overridden everywhere, groups that do not
            divide, layers that readers fuse with different schemes, tied or unsupported modules, nothing left to
            quantize, a budget that cannot be met.
    """
    problems = Problems()
    deciders = _deciders(recipe, inventory)
    check_rules(recipe, inventory, deciders, problems)
    decisions = [_decide(module, recipe, decider) for module, decider in zip(inventory.modules, deciders, strict=True)]
    decisions = _with_tied(_with_fused(decisions, find(recipe.format).FUSED_BY))
    check_decisions(recipe, inventory, decisions, problems)
    _raise_if_any(problems, recipe, inventory)
    rows = (row for decision in decisions for row in rows_of(decision, recipe, inventory.dtype))
    plan = Plan(recipe, inventory, tuple(rows))
    if recipe.budget and recipe.budget.bits_per_weight is not None:
        sizes = [(row.module, row.bytes_after) for row in plan.rows]
        check_budget(recipe.budget.bits_per_weight, plan.bits_per_weight, sizes, problems)
    _raise_if_any(problems, recipe, inventory)
    return plan


def _deciders(recipe: Recipe, inventory: Inventory) -> list[int | None]:
    """Index of the last rule that matches each module."""
    patterns = [rule.patterns for rule in recipe.rules]
    return [
        max((index for index, own in enumerate(patterns) if any(p.matches(module) for p in own)), default=None)
        for module in inventory.modules
    ]


def _decide(module: ModuleInfo, recipe: Recipe, decider: int | None) -> Decision:
    tied = f"shares the weight of {module.tied_to}" if module.tied_to else ""
    if decider is None:
        return Decision(module, None, KEEP, EXPERTS_STAY if module.kind == "experts" else tied)
    rule = recipe.rules[decider]
    scheme = rule.parsed
    if module.obstacle and not scheme.is_keep and not _asked_for(module, rule):
        return Decision(module, decider, KEEP, module.obstacle)
    if scheme.divides(module.shape[-1]):
        return Decision(module, decider, scheme, tied)
    fallback = next((scheme for scheme in rule.fallbacks if scheme.divides(module.shape[-1])), None)
    if fallback is None:
        return Decision(module, decider, scheme, tied)
    note = f"groups of {scheme.group_size} do not divide {module.shape[-1]} inputs, so {fallback.name}"
    return Decision(module, decider, fallback, note)


def _asked_for(module: ModuleInfo, rule: Rule) -> bool:
    """Whether the rule means exactly this module; then a reason against it is an error, not a note."""
    return any(pattern.kind == "name" and pattern.matches(module) for pattern in rule.patterns)


def _with_fused(decisions: list[Decision], reader: str) -> list[Decision]:
    """What a reader of the format loads as one layer stays as a whole where one part of it has to."""
    if not reader:
        return decisions
    kept = [decision for decision in decisions if decision.module.obstacle and decision.scheme.is_keep]
    stays = {decision.module.fused: decision.module.name for decision in kept if decision.module.fused}
    return [
        replace(decision, scheme=KEEP, note=f"{reader} loads it as one with {stays[decision.module.fused]}")
        if decision.module.fused in stays and not decision.scheme.is_keep and not decision.module.obstacle
        else decision
        for decision in decisions
    ]


def _with_tied(decisions: list[Decision]) -> list[Decision]:
    """A head that no rule names becomes what the embedding becomes whose weight it shares."""
    named = {decision.module.name: decision for decision in decisions}
    return [
        replace(named[decision.module.tied_to], module=decision.module, note=decision.note)
        if decision.module.tied_to and decision.decider is None
        else decision
        for decision in decisions
    ]


def rows_of(decision: Decision, recipe: Recipe, dtype: torch.dtype) -> Iterator[PlanRow]:
    """The rows of one module: one, or one for each matrix of a stack that is quantized."""
    module, scheme, note = decision.module, decision.scheme, decision.note
    format_ = find(recipe.format)
    rule = NO_RULE if decision.decider is None else f"rule {decision.decider + 1}: {recipe.rules[decision.decider]}"
    if scheme.is_keep or decision.decider is None or module.tied_to is not None:
        before = module.parameters * dtype.itemsize
        yield PlanRow(module, scheme, rule, None, before, _kept_bytes(module, format_, dtype), note)
        return
    rounding = recipe.rules[decision.decider].rounding or recipe.rounding
    beside = module.parameters - sum(prod(matrix.shape) for matrix in module.matrices)  # biases; with the first
    for matrix in module.matrices:
        scale_dtype = format_.scale_dtype(scheme, dtype)
        after = format_.stored_bytes(matrix.shape, scheme, scale_dtype)
        yield MatrixRow(
            module,
            scheme,
            rule,
            rounding,
            (prod(matrix.shape) + beside) * dtype.itemsize,
            after + beside * format_.kept_dtype((beside,), dtype).itemsize,
            note,
            matrix=matrix,
            payload=format_.payload_bytes(matrix.shape, scheme, scale_dtype),
            scale_dtype=scale_dtype,
            dense_dtype=format_.dense_dtype(scale_dtype),
        )
        beside = 0


def _kept_bytes(module: ModuleInfo, format_: Format, dtype: torch.dtype) -> int:
    main = min(prod(module.shape), module.parameters)  # 0 of a tied one; the rest is a bias
    rest = module.parameters - main
    sizes = ((main, format_.kept_dtype(module.shape, dtype)), (rest, format_.kept_dtype((rest,), dtype)))
    return sum(count * stored.itemsize for count, stored in sizes)


def _raise_if_any(problems: Problems, recipe: Recipe, inventory: Inventory) -> None:
    lines = problems.lines()
    if lines:
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        listing = "".join(f"\n  - {line}" for line in lines)
        raise PlanError(f"recipe {recipe.name!r} does not fit {inventory.architecture}, {count}:{listing}")
