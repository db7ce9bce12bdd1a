"""A baseline and its quantized twin in memory, module against module: any module of one can stand in the other.

The quantized model is made dense, so that no weight is unpacked twice; layers that quantize their activations stay,
since that belongs to what they compute. Both compute in float32 where that fits, as losses are measured (see
`llmquant.eval.precision`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmquant.compat.linears import is_conv1d
from llmquant.eval.precision import choose, in_float32
from llmquant.hf.fuse import unfuse
from llmquant.hf.ties import replace, tied_heads
from llmquant.models.inventory import Inventory, ModuleInfo
from llmquant.nn.embedding import PackedEmbedding
from llmquant.nn.int8_linear import Int8Linear
from llmquant.nn.linear import PackedLinear
from llmquant.nn.storage import PackedStorage, frozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Unit:
    """Modules that are exchanged together: one, those that readers load as one, or all of a rewritten block.

    Attributes:
        name: for people, such as "model.layers.0.self_attn.{q_proj,k_proj,v_proj}".
        modules: their names; of a tied weight both.
        block: None outside the decoder blocks.
        scheme: as the checkpoint stores them; several are joined by "+".
        rewritten: the block has other norms or biases than the baseline, so that only all of it can be exchanged.
    """

    name: str
    modules: tuple[str, ...]
    block: int | None
    scheme: str
    rewritten: bool = False


@dataclass(frozen=True)
class Twins:
    """Both models, dense, and what differs between them."""

    baseline: PreTrainedModel
    quantized: PreTrainedModel
    inventory: Inventory
    schemes: Mapping[str, str]  # of each module that is quantized
    note: str  # how they compute
    originals: dict[tuple[int, str], nn.Module] = field(default_factory=dict)

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """All that differs, in the model's order."""
        return tuple(_units(self))

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """Its decoder blocks."""
        return list(model.get_submodule(self.inventory.path).children())

    @contextmanager
    def exchanged(self, model: nn.Module, names: Sequence[str], others: Mapping[str, nn.Module]) -> Iterator[None]:
        """Let modules of `others` stand under these names in a model."""
        before = {name: model.get_submodule(name) for name in names}
        try:
            for name in names:
                replace(model, name, others[name])
            yield
        finally:
            for name, module in before.items():
                replace(model, name, module)

    def modules_of(self, model: nn.Module) -> dict[str, nn.Module]:
        """Those of all units."""
        return {name: model.get_submodule(name) for unit in self.units for name in unit.modules}


@contextmanager
def twins(baseline: PreTrainedModel, quantized: PreTrainedModel, inventory: Inventory) -> Iterator[Twins]:
    """Bring two loaded models into one form; the quantized one stays dense afterwards."""
    schemes = {name: str(each.scheme) for name, each in quantized.named_modules() if isinstance(each, PackedStorage)}
    loss = choose((baseline, quantized), "auto", kernels=False)
    with ExitStack() as stack:
        for model in (baseline, quantized):
            unfuse(model)
            _make_dense(model)
            if loss.wide:
                stack.enter_context(in_float32(model))
        yield Twins(baseline, quantized, inventory, schemes, loss.note)


def _make_dense(model: nn.Module) -> None:
    """Replace packed weights by dense ones of the same numbers; W8A8 layers stay, by plain torch."""
    heads = tied_heads(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedEmbedding):
            replace(model, name, module.dense().requires_grad_(False))
        elif isinstance(module, PackedLinear) and name not in heads:
            replace(model, name, _dense_linear(module, module.dequantize()))
        elif isinstance(module, Int8Linear) and module.weight_prepared is not None:
            module.unprepare()
    for head, name in heads.items():
        packed, table = model.get_submodule(head), model.get_submodule(name)
        assert isinstance(packed, PackedLinear)
        assert isinstance(table.weight, Tensor)
        replace(model, head, _dense_linear(packed, table.weight))


def _dense_linear(packed: PackedLinear, weight: Tensor) -> nn.Linear:
    linear = nn.Linear(packed.in_features, packed.out_features, bias=packed.bias is not None, device="meta")
    linear.weight = weight if isinstance(weight, nn.Parameter) else frozen(weight)
    if packed.bias is not None:
        linear.bias = packed.bias
    return linear


def matrix_of(module: nn.Module) -> Tensor | None:
    """Its weight (out_features, in_features) as it is multiplied; None where it holds none, or in a way of its own."""
    if isinstance(module, PackedStorage):
        return module.dequantize()
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return None
    return weight.detach().T if is_conv1d(module) else weight.detach()


def _units(twins: Twins) -> Iterator[Unit]:
    infos = {info.name: info for info in twins.inventory.modules}
    changed = [info for info in infos.values() if _differs(twins, info)]
    quantized = [info for info in changed if info.name in twins.schemes or not twins.schemes]
    others: dict[int | None, list[str]] = {}
    for info in changed:
        if info not in quantized and info.tied_to not in twins.schemes:
            others.setdefault(info.block, []).append(info.name)
    together: dict[tuple[object, ...], list[ModuleInfo]] = {}
    for info in quantized:
        key = ("block", info.block) if info.block in others else (info.fused or info.tied_to or info.name,)
        together.setdefault(key, []).append(info)
    for members in together.values():
        names, block = [info.name for info in members], members[0].block
        schemes = dict.fromkeys(twins.schemes.get(name, "quantized") for name in names)
        if block in others:
            label = f"{twins.inventory.path}.{block}" if block is not None else "all outside the blocks"
            yield Unit(label, (*names, *others[block]), block, "+".join(schemes), rewritten=True)
        else:
            yield Unit(unit_name(names), tuple(names), block, "+".join(schemes))


def unit_name(names: Sequence[str]) -> str:
    """One name for modules side by side, such as "mlp.{gate_proj,up_proj}", or for those that share a weight."""
    parents = {name.rpartition(".")[0] for name in names}
    if len(names) == 1:
        return names[0]
    if len(parents) > 1:
        return " = ".join(names)
    return f"{parents.pop()}.{{{','.join(name.rpartition('.')[2] for name in names)}}}"


def _differs(twins: Twins, info: ModuleInfo) -> bool:
    """Whether a module computes something else in the two models; of a module that is tied, as its owner."""
    if info.name in twins.schemes or info.tied_to in twins.schemes:
        return True
    found = [_module(model, info.name) for model in (twins.baseline, twins.quantized)]
    one, two = found
    if one is None or two is None:  # parameters of a stack of experts, which no scheme that runs changes
        return False
    mine, theirs = dict(one.named_parameters(recurse=False)), dict(two.named_parameters(recurse=False))
    if type(one) is not type(two) or mine.keys() != theirs.keys():
        return True
    return any(not torch.equal(mine[name].float(), theirs[name].float()) for name in mine)


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
