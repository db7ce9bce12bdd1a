"""What the GPU benchmark measures, and in which order: what matters most comes first, since time can run out."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

from llmquant.kernels.bench.contender import Shape
from llmquant.spec import Scheme


@dataclass(frozen=True)
class Format:
    """What a product is made of.

    Attributes:
        name: such as "W4A16-g128".
        scheme: of the weight, in the words of llmquant.spec.
        activations: bits in which they are multiplied: 16, or 8 after a quantization that is timed too.
    """

    name: str
    scheme: str
    activations: int

    def fits(self, shape: Shape) -> bool:
        """Whether its groups divide the inputs of a weight."""
        return Scheme.parse(self.scheme).divides(shape.k)


FORMATS = {
    form.name: form
    for form in (
        Format("W4A16-g128", "int4-g128", 16),
        Format("W8A16", "int8", 16),
        Format("W4A8-g128", "int4-g128", 8),
        Format("W8A8", "w8a8-dynamic", 8),
        Format("W4A16-g32", "int4-g32", 16),
        Format("W4A16-g128-asym", "int4-g128-asym", 16),
    )
}

#: Linear layers of Llama 3 8B and 70B, q/k/v and gate/up as one.
LAYERS = {
    "8B-gate_up": Shape(28672, 4096),
    "8B-down": Shape(4096, 14336),
    "8B-qkv": Shape(6144, 4096),
    "8B-o": Shape(4096, 4096),
    "70B-gate_up": Shape(57344, 8192),
    "70B-down": Shape(8192, 28672),
    "70B-qkv": Shape(10240, 8192),
    "70B-o": Shape(8192, 8192),
}
BATCHES = tuple(1 << power for power in range(14))
PEERS = ("tinygemm", "int_mm", "vllm", "humming", "gemlite", "bitsandbytes")
SWEEPS = ("none", "quick", "full")
_SMALL = 128
_DRY_LAYER = {"dry": Shape(136, 384)}
_DRY_BATCHES = (1, 5)


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        layers: names and weights.
        batches: numbers of rows of the input, M.
        formats: names out of `FORMATS`.
        peers: names out of `PEERS`.
        sweep: how many cases the check of correctness has, one of `SWEEPS`.
        budget: seconds for everything.
        configs: how many candidates of each launch to time beside the one that would run; 0 for none.
        pdl: whether programmatic dependent launch is timed beside its opposite.
        cold: whether single calls after a flushed cache are timed.
        eager: whether the host's time per call is.
        vllm_library: path of vLLM's library, or None.
        tune_peers: whether peers may tune themselves for shapes that they have no configuration for.
        dry: no GPU; tiny layers, nothing timed.
    """

    layers: dict[str, Shape]
    batches: tuple[int, ...]
    formats: tuple[str, ...]
    peers: tuple[str, ...]
    sweep: str = "quick"
    budget: float = 500.0
    configs: int = 0
    pdl: bool = False
    cold: bool = True
    eager: bool = True
    vllm_library: str | None = None
    tune_peers: bool = False
    dry: bool = False

    def plain(self) -> dict[str, Any]:
        """For a file; `Plan.read` undoes it."""
        return asdict(self)

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Plan:
        """Undo `plain`, also after JSON made lists of its tuples."""
        layers = {name: Shape(**shape) for name, shape in plain["layers"].items()}
        lists = {name: tuple(value) for name, value in plain.items() if isinstance(value, list | tuple)}
        return cls(**{**plain, **lists, "layers": layers})


@dataclass(frozen=True)
class Cell:
    """All kernels of one layer and number of rows, measured in turn.

    Attributes:
        layer: name of the weight.
        m: rows.
        peers: whether others than ours and cuBLAS take part.
    """

    layer: str
    m: int
    peers: bool

    @property
    def name(self) -> str:
        """For messages, and as a key."""
        return f"{self.layer} M={self.m}{' with peers' if self.peers else ''}"


def cells(plan: Plan) -> list[Cell]:
    """The order of measuring: few rows before many; ours and cuBLAS alone first, then again beside the peers."""
    found = []
    stages = (False, True) if plan.peers and not plan.dry else (False,)
    for batches in ([m for m in plan.batches if m <= _SMALL], [m for m in plan.batches if m > _SMALL]):
        for peers in stages:
            found += [Cell(layer, m, peers) for layer in plan.layers for m in batches]
    return found


def plan_from(args: argparse.Namespace) -> Plan:
    """The plan that the command line asks for.

    Raises:
        ValueError: if a layer, size or format is none.
    """
    formats = tuple(args.formats or FORMATS)
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"formats are {', '.join(FORMATS)}, not {', '.join(unknown)}")
    if args.dry_run:
        return Plan(_DRY_LAYER, _DRY_BATCHES, formats, PEERS, dry=True)
    return Plan(
        layers=_layers(args.shapes or list(LAYERS)),
        batches=tuple(args.m or BATCHES),
        formats=formats,
        peers=tuple(PEERS if args.peers is None else args.peers),
        sweep=args.sweep,
        budget=args.budget,
        configs=args.configs,
        pdl=args.pdl,
        cold=args.cold,
        eager=args.eager,
        vllm_library=args.vllm_library,
        tune_peers=args.tune_peers,
    )


def _layers(names: list[str]) -> dict[str, Shape]:
    """Layers by name, by the beginning of their names ("8B"), or by their size ("4096x11008")."""
    found: dict[str, Shape] = {}
    for name in names:
        matching = {layer: shape for layer, shape in LAYERS.items() if layer == name or layer.startswith(f"{name}-")}
        n, _, k = name.partition("x")
        if not matching and n.isdecimal() and k.isdecimal():
            matching = {name: Shape(int(n), int(k))}
        if not matching:
            raise ValueError(f"a layer is NxK, 8B, 70B or one of {', '.join(LAYERS)}, not {name!r}")
        found |= matching
    return found
