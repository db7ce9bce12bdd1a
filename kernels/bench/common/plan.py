"""What the kernel benchmark measures, and in which order: what matters most comes first, since time can run out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from llmquant.kernels.bench.common.facts import last_level_cache
from llmquant.kernels.bench.common.weights import Shape

CPU, CUDA, DRY = "cpu", "cuda", "dry"
#: Linear layers of Llama 3 8B and 70B, q/k/v and gate/up as one.
LAYERS = {
    "8B": (Shape(28672, 4096), Shape(4096, 14336), Shape(6144, 4096), Shape(4096, 4096)),
    "70B": (Shape(57344, 8192), Shape(8192, 28672), Shape(10240, 8192), Shape(8192, 8192)),
}
PEERS = {
    CPU: ("torch", "onnxruntime", "llama.cpp"),
    CUDA: ("torch", "humming", "marlin"),
    DRY: (),
}
_CPU_SHAPES = (Shape(4096, 4096), Shape(11008, 4096), Shape(4096, 11008), Shape(2048, 768), Shape(768, 768))
_ROTATE_BYTES, _MOST_ROTATE_BYTES = 110_000_000, 512_000_000


class Cell(NamedTuple):
    """All kernels with one weight and number of rows, measured in turn."""

    shape: Shape
    m: int

    @property
    def name(self) -> str:
        """For messages, and as a key."""
        return f"{self.shape} M={self.m}"


@dataclass(frozen=True)
class Plan:
    """One run of the benchmark."""

    where: str  # "cpu", "cuda", or "dry": the GPU kernels in Triton's interpreter, and nothing timed
    shapes: tuple[Shape, ...]
    batches: tuple[int, ...]  # numbers of rows of the input, M
    schemes: tuple[str, ...]  # of our kernels
    peers: tuple[str, ...]  # whom to compare with, beside torch's dense product
    threads: int  # of torch, on the CPU
    seconds: float  # measured time of each shape and batch, for all kernels together
    rotate_bytes: int  # distinct weights per kernel, far more than the cache holds
    budget: float  # seconds for everything
    vllm_library: str | None = None  # path of vLLM's library

    def cells(self) -> Iterator[Cell]:
        """In the order of measuring: on a GPU few rows before many; on the CPU the weights of a shape are made once."""
        if self.where == CPU:
            yield from (Cell(shape, m) for shape in self.shapes for m in self.batches)
        else:
            yield from (Cell(shape, m) for m in self.batches for shape in self.shapes)

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Plan:
        """Undo `vars` of a plan, also after JSON made lists of its tuples."""
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
        return cls(**{**values, "shapes": tuple(Shape(*shape) for shape in plain["shapes"])})


def default_plan(where: str, quick: bool = False) -> Plan:
    """What runs when nothing else is asked for; a quick one has fewer shapes, rows and schemes, and no peers."""
    if where == CPU:
        plan = Plan(
            where, _CPU_SHAPES, (1, 4, 16, 128, 512), ("int4-g128", "int4-g32", "int4-g128-asym", "int8"), PEERS[where],
            threads=1, seconds=8, rotate_bytes=rotate_bytes(last_level_cache()), budget=7200,
        )  # fmt: skip
        short = {"shapes": _CPU_SHAPES[:1], "batches": (1, 4, 128), "schemes": ("int4-g128", "int8"), "seconds": 3}
    else:
        schemes = ("int4-g128", "int8", "w8a8-dynamic", "int4-g32", "int4-g128-asym")
        plan = Plan(
            where, LAYERS["8B"] + LAYERS["70B"], (1, 16, 64, 4, 256, 1024, 4096), schemes, PEERS[where],
            threads=1, seconds=0.35, rotate_bytes=0, budget=500,
        )  # fmt: skip
        short = {"shapes": LAYERS["8B"], "batches": (1, 16, 1024), "schemes": schemes[:3]}
        if where == DRY:
            plan = replace(plan, shapes=(Shape(136, 384),), batches=(1, 5), schemes=schemes)
            short = {"schemes": schemes[:1]}
    return replace(plan, **short, peers=()) if quick else plan


def shapes_from(words: list[str]) -> tuple[Shape, ...]:
    """Shapes by the name of a model ("8B"), or by size ("4096x11008").

    Raises:
        ValueError: if a word is neither.
    """
    found: list[Shape] = []
    for word in words:
        n, _, k = word.partition("x")
        if word not in LAYERS and not (n.isdecimal() and k.isdecimal()):
            raise ValueError(f"a size is NxK, such as 4096x11008, or one of {', '.join(LAYERS)}, not {word!r}")
        found += LAYERS.get(word) or [Shape(int(n), int(k))]
    return tuple(found)


def rotate_bytes(cache_bytes: int) -> int:
    """Distinct weights that no cache of this size keeps; limited, so that a huge cache does not take hours."""
    return min(max(_ROTATE_BYTES, 3 * cache_bytes), _MOST_ROTATE_BYTES)
