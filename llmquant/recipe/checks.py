"""Everything that makes a plan an error. Each check adds its problems; all are reported together, each with its fix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmquant.formats import find
from llmquant.models.inventory import NAMED_SETS, Inventory, ModuleInfo
from llmquant.recipe.match import Pattern
from llmquant.recipe.naming import collective_names, template
from llmquant.recipe.schema import Recipe, Rule
from llmquant.spec import Scheme
from llmquant.words import did_you_mean, listed

MAX_DEAD, MAX_LINES = 10, 40


@dataclass(frozen=True, slots=True)
class Decision:
    """The scheme of a module, the index of the rule that decided (None: no rule), and a note."""

    module: ModuleInfo
    decider: int | None
    scheme: Scheme
    note: str = ""


@dataclass(slots=True)
class Problems:
    """Problems in order of discovery; those that differ only in the module are told once."""

    _modules: dict[str, list[ModuleInfo]] = field(default_factory=dict)

    def add(self, message: str, module: ModuleInfo | None = None) -> None:
        """Add a problem, of one module or of the recipe."""
        found = self._modules.setdefault(message, [])
        if module is not None:
            found.append(module)

    def lines(self) -> list[str]:
        """One line for each problem, the last of `MAX_LINES` for those beyond them."""
        lines = [f"{_names(modules)}: {text}" if modules else text for text, modules in self._modules.items()]
        if len(lines) <= MAX_LINES:
            return lines
        return [*lines[: MAX_LINES - 1], f"and {len(lines) - MAX_LINES + 1} more problems"]


def check_rules(recipe: Recipe, inventory: Inventory, deciders: Sequence[int | None], problems: Problems) -> None:
    """Patterns that match nothing, rules that later rules override everywhere, and recipes that change nothing."""
    for index, rule in enumerate(recipe.rules):
        label = f"rule {index + 1} ({rule})"
        dead = [p for p in rule.patterns if not any(p.matches(module) for module in inventory.modules)]
        for pattern in dead[:MAX_DEAD]:  # finding the nearest name takes its time
            problems.add(f"{label}: {_why_dead(pattern, inventory)}")
        if len(dead) > MAX_DEAD:
            problems.add(f"{label}: {len(dead) - MAX_DEAD} more patterns match nothing")
        if len(dead) < len(rule.patterns) and index not in deciders:
            problems.add(f"{label} decides nothing: later rules override it everywhere; move it down or remove it")
    if all(rule.parsed.is_keep for rule in recipe.rules):
        problems.add(
            "every rule says keep, so nothing would be quantized; add a rule such as {match: linear, scheme: int8}"
        )


def check_decisions(recipe: Recipe, inventory: Inventory, decisions: Sequence[Decision], problems: Problems) -> None:
    """Modules that cannot become what a rule says, and sets that must not be split."""
    format_ = find(recipe.format)
    named = {decision.module.name: decision for decision in decisions}
    owners = {module.tied_to for module in inventory.modules if module.tied_to}
    for decision in decisions:
        module = decision.module
        if decision.decider is None:  # no rule, not even by way of what it is tied to
            continue
        if module.tied_to and module.obstacle:
            if not (decision.scheme.is_keep and named[module.tied_to].scheme.is_keep):
                reason = f"cannot be packed: {module.obstacle}; keep it, and {module.tied_to}, whose weight it shares"
                problems.add(reason, module)
        elif module.tied_to:
            if named[module.tied_to].scheme != decision.scheme:
                problems.add(
                    "one weight serves as embedding and lm_head (tie_word_embeddings), so both need one scheme: name "
                    f"both in a rule, as in `match: [embedding, lm_head]`; here {named[module.tied_to].module.name} "
                    f"{named[module.tied_to].scheme}, {module.name} {decision.scheme}",
                    module,
                )
        elif not decision.scheme.is_keep:
            rule = recipe.rules[decision.decider]
            reason = _why_not(module, decision.scheme, shared=module.name in owners, trained=recipe.qat is not None)
            reason = reason or format_.why_not(module, decision.scheme, portable=recipe.portable)
            reason = reason or _why_indivisible(module, rule, decision.scheme)
            rounding = rule.rounding or recipe.rounding
            if not reason and module.idle and module.block is not None and rounding.algorithm.NEEDS:
                reason = (
                    f"text alone does not run it (it may attend to an encoder), so {rounding.method} has nothing to "
                    "calibrate it on; give it a rule with `rounding: {method: rtn}`, or keep it"
                )
            if reason:
                problems.add(f"{reason} (rule {decision.decider + 1}, {rule})", module)
    for message, module in format_.problems(decisions, inventory, portable=recipe.portable):
        problems.add(message, module)
    _check_something_is_left(decisions, problems)


def check_budget(
    limit: float, bits_per_weight: float, sizes: Sequence[tuple[ModuleInfo, int]], problems: Problems
) -> None:
    """The size of the result against `budget.bits_per_weight`."""
    if bits_per_weight <= limit:
        return
    totals: dict[str, int] = {}
    for module, size in sizes:
        totals[template(module)] = totals.get(template(module), 0) + size
    largest = sorted(totals, key=lambda name: -totals[name])[:3]
    parts = listed(f"{name.replace('{}', '*')} {totals[name] / sum(totals.values()):.0%}" for name in largest)
    problems.add(
        f"{bits_per_weight:.3f} bits per weight, kept modules included, is over the budget of {limit:g}; "
        f"the largest parts are {parts}"
    )


def _why_dead(pattern: Pattern, inventory: Inventory) -> str:
    if pattern.kind == "set":
        return f"this model has no {pattern.text} ({NAMED_SETS[pattern.text]}); remove the pattern"
    protected = [module for module in inventory.modules if pattern.names(module)]
    if protected:
        return (
            f"'{pattern.text}' fits only protected modules ({_names(protected)}), which patterns never reach; "
            "write their set or exact name"
        )
    names = [module.name for module in inventory.modules]
    if pattern.kind == "name" and any(name.startswith(f"{pattern.text}.") for name in names):
        return f"'{pattern.text}' has no weight of its own; did you mean '{pattern.text}.*'?"
    leaves = [f"*.{name.rpartition('.')[2]}" for name in names]
    known = leaves if pattern.kind == "glob" else [*NAMED_SETS, *names, *(leaf[2:] for leaf in leaves)]
    hint = "" if pattern.kind == "regex" else did_you_mean(pattern.text, known)
    example = next((module.name for module in inventory.modules if "linear" in module.sets), "lm_head")
    return f"'{pattern.text}' matches nothing{hint or f'; names look like {example}'}"


def _why_not(module: ModuleInfo, scheme: Scheme, *, shared: bool, trained: bool) -> str:
    """Why a module cannot have a scheme, with the fix; empty if it can."""
    if module.kind == "experts":
        return "experts cannot be quantized yet; drop the rule, which keeps them, or say keep"
    if module.kind == "embedding":
        if not module.sets:
            return "computes more than the lookup of a row, so its table cannot be packed; keep it"
        if module.obstacle:
            return f"cannot be packed: {module.obstacle}; keep it"
        if scheme.activations:
            return "an embedding has no activations to quantize; use a weight-only scheme such as int8"
        return ""
    if shared:
        return "other layers than lm_head share its weight; keep it"
    if module.kind not in ("linear", "conv1d"):
        return f"{module.kind} modules cannot be quantized; keep them"
    if module.obstacle:
        return f"cannot be packed: {module.obstacle}; keep it"
    if module.block is None and "lm_head" not in module.sets:
        return "lies outside the decoder blocks, where only lm_head can be quantized; keep it"
    if scheme.activations == "static" and not trained:
        return "static activation scales cannot be calibrated yet; use w8a8-dynamic, or train them (section qat)"
    return ""


def _why_indivisible(module: ModuleInfo, rule: Rule, scheme: Scheme) -> str:
    in_features = module.shape[-1]
    if scheme.divides(in_features):
        return ""
    tried = f", nor does any of if_indivisible: [{listed(rule.if_indivisible)}]" if rule.if_indivisible else ""
    sizes = [f"g{size}" for size in (64, 32, 16) if size < (scheme.group_size or 0) and in_features % size == 0]
    choices = listed([*sizes, "channel", "keep"])
    return (
        f"groups of {scheme.group_size} do not divide its {in_features} inputs{tried}; say in the rule what to do "
        f"instead, as in `if_indivisible: {choices.split(', ')[0]}` (possible here: {choices})"
    )


def _check_something_is_left(decisions: Sequence[Decision], problems: Problems) -> None:
    """Rules that say more than keep, and still change nothing: all that they reach stays for a reason of its own."""
    if any(not decision.scheme.is_keep for decision in decisions) or problems.lines():
        return
    reasons = dict.fromkeys(d.note for d in decisions if d.decider is not None and d.note)
    problems.add(f"nothing would be quantized: {'; '.join(reasons) or 'every rule ends in keep'}")


def _names(modules: Sequence[ModuleInfo]) -> str:
    names = collective_names(modules)
    shown = listed(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
