"""Take stock of a model: every parameter in exactly one entry, each named by what it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from llmquant.compat.linears import is_conv1d
from llmquant.models import families
from llmquant.models.inventory import Kind, ModuleInfo
from llmquant.nn.embedding import is_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def list_modules(model: PreTrainedModel, prefix: str, blocks: int) -> tuple[ModuleInfo, ...]:
    """List everything in `model` that has parameters, in the model's order.

    `prefix` is the name of the list of decoder blocks, such as "model.layers".
    """
    walk = _Walk(model, prefix, blocks)
    return _with_fused(tuple(info for name, module in model.named_modules() for info in walk.entries(name, module)))


class _Walk:
    def __init__(self, model: PreTrainedModel, prefix: str, blocks: int) -> None:
        self.prefix = f"{prefix}."
        self.blocks = blocks
        self.head = model.get_output_embeddings()
        self.modules = dict(model.named_modules())
        self.owners: dict[int, str] = {}  # id of a parameter -> the module that owns it

    def entries(self, name: str, module: nn.Module) -> Iterator[ModuleInfo]:
        own = dict(module.named_parameters(recurse=False))
        if not own:
            return
        kind = self._kind(name, module)
        if kind == "experts" and not isinstance(module, nn.Linear):
            yield from self._experts(name, own, turned=getattr(module, "is_transposed", False))
            return
        yield self._entry(name, kind, module, own)

    def _entry(self, name: str, kind: Kind, module: nn.Module, own: dict[str, nn.Parameter]) -> ModuleInfo:
        largest = max(own.values(), key=lambda parameter: parameter.numel())
        turned = is_conv1d(module)
        shape = tuple(largest.shape)[::-1] if turned else tuple(largest.shape)
        block = self._block(name)
        return ModuleInfo(
            name=name,
            kind=kind,
            shape=shape,
            parameters=self._claim(name, own.values()),
            block=block,
            sets=self._sets(name, kind, block, module),
            tied_to=None if self.owners[id(largest)] == name else self.owners[id(largest)],
            bias=own.get("bias") is not None,
            turned=turned,
        )

    def _experts(self, name: str, own: dict[str, nn.Parameter], *, turned: bool) -> Iterator[ModuleInfo]:
        for key, weight in own.items():
            if key.endswith("_bias") and key.removesuffix("_bias") in own:
                continue
            bias = own.get(f"{key}_bias")
            full = f"{name}.{key}"
            count = self._claim(full, [weight] if bias is None else [weight, bias])
            shape, block = tuple(weight.shape), self._block(name)
            sets = frozenset({"experts"})
            yield ModuleInfo(full, "experts", shape, count, block, sets, bias=bias is not None, turned=turned)

    def _claim(self, name: str, parameters: Iterable[nn.Parameter]) -> int:
        count = 0
        for parameter in parameters:
            if self.owners.setdefault(id(parameter), name) == name:
                count += parameter.numel()
        return count

    def _kind(self, name: str, module: nn.Module) -> Kind:
        components, class_name = name.split("."), type(module).__name__
        if isinstance(module, nn.Embedding):
            return "embedding"
        if "Router" in class_name or self._routes(components, module):
            return "router"
        if families.EXPERTS.intersection(components) or self._stacks_experts(components, module):
            return "experts"
        if isinstance(module, nn.Linear):
            return "linear"
        if is_conv1d(module):
            return "conv1d"
        return "norm" if "norm" in class_name.lower() or "norm" in components[-1].lower() else "other"

    def _routes(self, components: list[str], module: nn.Module) -> bool:
        if families.ROUTERS.intersection(components):
            return True
        if isinstance(module, nn.Linear) and any(families.ROUTER_WORD in word.lower() for word in components):
            return True
        gates = [end for end, word in enumerate(components) if word == families.ROUTER_BESIDE_EXPERTS]
        siblings = (".".join([*components[:end], word]) for end in gates for word in families.EXPERTS)
        return any(name in self.modules for name in siblings)

    def _stacks_experts(self, components: list[str], module: nn.Module) -> bool:
        """Whether it holds one matrix per expert, stacked. Not every 3-D parameter is that: attention has such, too."""
        if not any(parameter.ndim == 3 for parameter in module.parameters(recurse=False)):
            return False
        path = [".".join(components[:end]) for end in range(1, len(components) + 1)]
        words = [*components, *(type(self.modules[name]).__name__ for name in path)]
        return any(families.STACKED_EXPERTS in word.lower() for word in words)

    def _block(self, name: str) -> int | None:
        if not name.startswith(self.prefix):
            return None
        return int(name[len(self.prefix) :].split(".", 1)[0])

    def _sets(self, name: str, kind: Kind, block: int | None, module: nn.Module) -> frozenset[str]:
        if module is self.head:
            return frozenset({"lm_head"})
        if kind in ("experts", "router") or (kind == "embedding" and is_table(module)):
            return frozenset({kind})
        if kind not in ("linear", "conv1d") or block is None:
            return frozenset()
        *parents, leaf = name[len(self.prefix) :].split(".")
        sets = {"linear", *_part_sets(parents, leaf)}
        if block == 0:
            sets.add("first_block")
        if block == self.blocks - 1:
            sets.add("last_block")
        return frozenset(sets)


def _part_sets(parents: list[str], leaf: str) -> set[str]:
    """Sets that follow from the names inside a block."""
    if any(word in parent.lower() for parent in parents for word in families.ATTENTION):
        parts = {"attention"}
        if leaf in families.QKV:
            parts.add("attention.qkv")
        if leaf in families.ATTENTION_OUTPUT:
            parts.add("attention.o")
        return parts
    if leaf in families.GATE_UP:
        return {"mlp", "mlp.gate_up"}
    return {"mlp", "mlp.down"} if leaf in families.DOWN else set()


def _with_fused(modules: tuple[ModuleInfo, ...]) -> tuple[ModuleInfo, ...]:
    """Mark sets of sibling layers that readers load as one."""
    labels: dict[str, str] = {}
    for module in modules:
        parent, _, leaf = module.name.rpartition(".")
        if leaf in families.FUSED and "linear" in module.sets:
            labels[module.name] = f"{parent}:{families.FUSED[leaf]}"
    together = Counter(labels.values())
    return tuple(
        replace(module, fused=label) if (label := labels.get(module.name)) and together[label] > 1 else module
        for module in modules
    )
