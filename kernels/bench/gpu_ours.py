"""Our kernels as what they are in a layer: prepared weights, and the function that a layer calls."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmquant.kernels.bench.contender import Shape
from llmquant.kernels.bench.gpu_cases import FORMATS, Plan
from llmquant.kernels.bench.gpu_kernel import OURS, Kernel
from llmquant.kernels.bench.gpu_weights import Weight
from llmquant.kernels.gpu import runtime
from llmquant.kernels.gpu.choose import dispatch, estimate
from llmquant.kernels.gpu.choose.config import DENSE, Config
from llmquant.kernels.gpu.weight import Format, prepare
from llmquant.spec import Scheme

_DENSE_FROM = 64  # rows below which nobody would make a weight dense
_NAMES = {"W4A16": "w4a16", "W8A16": "w8a16", "W4A8": "w4a8", "W8A8": "w8a8"}
_OLDEST_PDL = (9, 0)


class Ours(Kernel):
    """One of our formats.

    Args:
        form: its name.
        config: how to cut the work; None for what dispatch.py chooses, which is what users get.
    """

    def __init__(self, form: str, config: Config | None = None) -> None:
        super().__init__(OURS, form, "" if config is None else config_name(config))
        self.config = config
        self._w8a8 = form == "W8A8"

    @property
    def layout(self) -> str:
        """Kernels with the same prepared weights share them."""
        return f"{OURS} {'W8A8' if self._w8a8 else self.format.scheme}"

    def prepare(self, weight: Weight) -> tuple[Any, ...]:
        """(prepared weight, n, numbers of its format); for W8A8 (codes, scales)."""
        if self._w8a8:
            return weight.codes.clone(), weight.scale
        stored = (weight.packed, weight.scale, weight.zero, weight.scheme.bits, weight.shape.k)
        return prepare(*stored), weight.shape.n, Format.of(*stored[1:]).numbers()

    def call(self, x: Tensor, prepared: Any, out_dtype: torch.dtype | None = None) -> Tensor:
        """The product; `out_dtype` shows it before it is rounded."""
        if self._w8a8:
            from llmquant.kernels.gpu.launch_a8 import linear_w8a8

            return linear_w8a8(x, *prepared, config=self.config)
        from llmquant.kernels.gpu.launch import linear

        weight, n, form = prepared
        exact = self.format.activations == 16
        return linear(x, weight, None, n, form, exact, config=self.config, out_dtype=out_dtype)

    def describe(self, shape: Shape, m: int) -> dict[str, Any]:
        """The configuration that runs."""
        return {"config": plain(self.config or self.chosen(shape, m))}

    def chosen(self, shape: Shape, m: int, card: Card | None = None) -> Config:
        """What dispatch.py chooses, for the current GPU or another."""
        card = card or current_card()
        return dispatch.choose(card.arch, *self._question(shape, m), processors=card.processors)

    def candidates(self, shape: Shape, m: int) -> list[Config]:
        """What estimate.py would try, the best guess first."""
        card = current_card()
        return estimate.candidates(card.arch, *self._question(shape, m), card.processors)

    def _question(self, shape: Shape, m: int) -> tuple[str, int, int, int, int]:
        scheme = Scheme.parse(self.format.scheme)
        has = Format(scheme.bits, shape.k, shape.k // (scheme.group_size or shape.k), 1, False, not scheme.symmetric)
        return _NAMES[self.form.partition("-")[0]], m, shape.n, shape.k, has.unit


class Card(NamedTuple):
    """What dispatch.py asks of a GPU."""

    arch: str
    processors: int


#: Cases are built for it where there is no GPU.
H200 = Card("sm90", 132)


def current_card() -> Card:
    """The GPU that is there; the interpreter, if that runs."""
    device = torch.device("cpu" if runtime.interpreting() else "cuda")
    return Card(runtime.arch(device), runtime.processors(device))


def kernels(plan: Plan, shape: Shape, m: int) -> list[Ours]:
    """Every format as users get it; the dense way of one; and what else the plan asks for."""
    found = [Ours(form) for form in plan.formats if FORMATS[form].fits(shape)]
    first = found[0] if found else None
    if first and m >= _DENSE_FROM and first.format.activations == 16 and first.chosen(shape, m) != DENSE:
        found.append(Ours(first.form, DENSE))
    return found + [Ours(one.form, config) for one in found for config in _others(plan, one, shape, m)]


def _others(plan: Plan, kernel: Ours, shape: Shape, m: int) -> list[Config]:
    """Candidates beside the one that runs anyway, with and without programmatic dependent launch if that is asked."""
    if kernel.config is not None:
        return []
    runs = kernel.chosen(shape, m)
    tried = kernel.candidates(shape, m) if plan.configs else []
    others = [config for config in tried if config not in (runs, DENSE)][: plan.configs]
    if plan.pdl and not plan.dry and torch.cuda.get_device_capability() >= _OLDEST_PDL:
        others += [replace(config, pdl=not config.pdl) for config in (runs, *others) if config != DENSE]
    return others


def config_name(config: Config) -> str:
    """Short, such as "16x128x8 w4 s4 pdl"; "dense"."""
    if config == DENSE:
        return "dense"
    cut = f"{config.block_m}x{config.block_n}x{config.split_k}"
    return f"{cut} w{config.warps} s{config.stages}{' pdl' * config.pdl}"


def plain(config: Config) -> dict[str, Any] | str:
    """As tables of configurations have it."""
    return "dense" if config == DENSE else asdict(config)


def built(plan: Plan, card: Card) -> list[dict[str, Any]]:
    """Every case of a plan as far as it can be made without a GPU: what would run, on how many bytes.

    Args:
        plan: whose layers, batches and formats are crossed.
        card: what it would run on.
    """
    found = []
    for layer, shape in plan.layers.items():
        for form in (Ours(name) for name in plan.formats if FORMATS[name].fits(shape)):
            scheme = Scheme.parse(form.format.scheme)
            groups = scheme.scale_shape(shape.n, shape.k)[1]
            size = shape.n * shape.k * scheme.bits // 8 + shape.n * groups * (2 if scheme.symmetric else 2.5)
            for m in plan.batches:
                config = config_name(form.chosen(shape, m, card))
                found.append({"layer": layer, "m": m, "format": form.form, "weight_bytes": int(size), "config": config})
    return found
