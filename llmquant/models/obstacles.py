"""What cannot be packed though it looks as if it could, found by trying; and layers that turn out to choose experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from llmquant.compat.linears import why_not_linear
from llmquant.models import families
from llmquant.models.inventory import ModuleInfo
from llmquant.models.trial import Trial, try_packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ASSEMBLED = "the checkpoint stores it merged with others, or in parts"


def with_obstacles(
    model: PreTrainedModel, modules: Sequence[ModuleInfo], blocks: Sequence[nn.Module] = ()
) -> tuple[tuple[ModuleInfo, ...], Trial]:
    """Add to each entry of an inventory what stands in the way of packing it.

    The model, with parameters on meta, is the same afterwards. Returns the entries, and what trying model code showed.
    """
    parts = dict(model.named_modules())
    packable = {module.name: parts[module.name] for module in modules if _may_be_packed(module)}
    reasons = {
        name: f"it {reason}"
        for name, part in packable.items()
        if not isinstance(part, nn.Embedding) and (reason := why_not_linear(part))
    }
    reasons |= dict.fromkeys(_assembled(model, packable), _ASSEMBLED)
    reasons |= _sharing(modules)
    hidden = {name: part for name, part in packable.items() if name not in reasons}
    trial = try_packed(model, hidden, _experts(parts, modules), blocks)
    reasons |= {name: f"model code reads its weight ({where})" for name, where in trial.readers.items()}
    found = (replace(_as_found(m, reasons, trial.routers), idle=m.name in trial.idle) for m in modules)
    plain = {name: f"its own initialisation reads the weight ({where})" for name, where in trial.initialised.items()}
    return tuple(_for_plain_transformers(model, tuple(found), plain)), trial


def _assembled(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    from llmquant.compat.loading import assembled  # which imports transformers

    parameters = assembled(model)
    return [name for name in names if f"{name}.weight" in parameters]


def _sharing(modules: Sequence[ModuleInfo]) -> dict[str, str]:
    """Layers that run in several places with one weight; only an output layer may share that of an embedding."""
    reasons: dict[str, str] = {}
    for module in modules:
        if module.tied_to and "linear" in module.sets:
            reasons[module.tied_to] = f"{module.name} shares its weight"
            reasons[module.name] = f"it shares the weight of {module.tied_to}"
    return reasons


def _for_plain_transformers(
    model: PreTrainedModel, modules: Iterable[ModuleInfo], reasons: Mapping[str, str]
) -> Iterator[ModuleInfo]:
    from llmquant.compat.plain_loading import lost_parameters, upcast_scales  # which import transformers

    modules, lost = tuple(modules), lost_parameters(model)
    reasons = {**upcast_scales(model, [module.name for module in modules if _may_be_packed(module)]), **reasons}
    for module in modules:
        packed = "" if module.obstacle else reasons.get(module.name)  # what has an obstacle never is
        reason = packed or lost.get(module.name) or lost.get(f"{module.name}.weight")
        yield replace(module, plain_obstacle=reason) if reason else module


def _may_be_packed(module: ModuleInfo) -> bool:
    return bool(module.sets & {"linear", "lm_head", "embedding"})


def _experts(parts: Mapping[str, nn.Module], modules: Sequence[ModuleInfo]) -> dict[str, nn.Module]:
    """The modules that compute all experts of a layer, the outermost where they are nested."""
    found = {}
    for module in modules:
        if module.kind == "experts":
            components = module.name.split(".")
            ends = (end for end, word in enumerate(components, 1) if word in families.EXPERTS)
            owner = module.name if module.name in parts else module.name.rpartition(".")[0]
            name = ".".join(components[:end]) if (end := next(ends, 0)) else owner
            found[name] = parts[name]
    return found


def _as_found(module: ModuleInfo, reasons: Mapping[str, str], routers: set[str]) -> ModuleInfo:
    if module.name in routers and "lm_head" not in module.sets:
        return replace(module, kind="router", sets=frozenset({"router"}), fused=None)
    return replace(module, obstacle=reasons[module.name]) if module.name in reasons else module
