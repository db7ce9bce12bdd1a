"""What the compile gates compile, and what they allow.

Which configuration a launch takes is asked of dispatch.py, for layers of models of 8 and 70 billion parameters, so the
cases follow the tables. Those that differ in nothing the compiler sees, or only in how many programs share a block, are
compiled once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import Tensor

from llmquant.kernels.bench.gates.compile import Case, Limits, recording
from llmquant.kernels.gpu.choose.config import Config
from llmquant.kernels.gpu.weight import DTYPES, Format
from llmquant.kernels.product import Product


@dataclass(frozen=True)
class Card:
    """What the limits need to know of an architecture.

    Attributes:
        tensor: which instructions multiply 16-bit matrices.
        processors: multiprocessors of the card that dispatch.py is asked about.
        shared: KB of shared memory of a multiprocessor.
        bytes: that a multiprocessor reads from memory in a clock, at 0.9 of the data sheet's rate.
        flops: 16-bit, with sums in float32, of a multiprocessor in a clock. Int8 has twice as many.
        slack: how much more its loops may issue than there are slots for.
        pdl: whether a launch may overlap with the one in front.
        hip: whether the compiler is AMD's.
    """

    tensor: str
    processors: int
    shared: int
    bytes: float
    flops: int
    slack: float = 1.0
    pdl: bool = False
    hip: bool = False


#: A100, RTX 4090, H200, B200, RTX 5090, MI300X. Rates are from their data sheets, sizes from the CUDA programming guide
#: (table of compute capabilities) and the CDNA 3 ISA.
CARDS = {
    "sm_80": Card("mma_sync", 108, 164, 12.0, 2048),
    "sm_89": Card("mma_sync", 128, 100, 2.9, 512),
    "sm_90": Card("wgmma", 132, 228, 18.6, 4096, pdl=True),
    "sm_100": Card("tcgen05", 148, 228, 26.3, 8192, slack=2.2, pdl=True),  # Hopper's loop, and twice the memory rate
    "sm_120": Card("mma_sync", 170, 100, 3.9, 512, pdl=True),
    "gfx942": Card("mfma", 304, 64, 8.0, 2048, hip=True),
}
QUICK_ARCHS = ("sm_80", "sm_90", "sm_100")
#: Triton versions that the gates were run with: the one that the pinned torch brings, and a newer one. The extra of
#: pyproject.toml asks for the oldest or newer.
TRITON_SEEN = ("3.7.1", "3.9.0")
_SCHEDULERS = 4  # of a multiprocessor; each issues an instruction of one warp in a clock
#: outputs x inputs: attention, and both halves of the feed-forward part, of Llama 3 8B; the largest of 70B.
_SHAPES = ((6144, 4096), (28672, 4096), (4096, 14336), (57344, 8192))
_MANY, _FEW = (1, 16, 32, 64, 128, 256, 512, 1024), (1, 64)


@dataclass(frozen=True)
class Variant:
    """A kind of launch.

    Attributes:
        name: of it, for people.
        kind: "a16", "w4a8" or "w8a8", by the bits of weights and activations.
        bits: of the codes.
        group: inputs per scale; 0 for all.
        rows: of x, one launch each; in all shapes if they are `_MANY`, else in one.
        quick: those of the quick run on sm_90.
        elsewhere: those of the quick run on the other architectures.
        asymmetric: whether there are zeros.
        dtype: of x and of the scales.
        parts: weights in the launch.
        silu: whether they are a pair.
        extras: whether there are biases and a residual.
        tail: inputs that are missing to the last tile.
        static: whether the scale of x is given.
        config: how to cut the work; None for what dispatch.py chooses.
    """

    name: str
    kind: str = "a16"
    bits: int = 4
    group: int = 128
    rows: tuple[int, ...] = _FEW
    quick: tuple[int, ...] = ()
    elsewhere: tuple[int, ...] = ()
    asymmetric: bool = False
    dtype: torch.dtype = torch.bfloat16
    parts: int = 1
    silu: bool = False
    extras: bool = False
    tail: int = 0
    static: bool = False
    config: Config | None = None


VARIANTS = (
    Variant("int4-g128", rows=_MANY, quick=(1, 32, 64, 256, 1024), elsewhere=(1, 64)),
    Variant("int4-g128-asym", rows=_MANY, quick=(1, 64), elsewhere=(1,), asymmetric=True),
    Variant("int4-g64", group=64, rows=_MANY, quick=(1,)),
    Variant("int4-g32", group=32, rows=_MANY, quick=(1, 64), elsewhere=(1,)),
    Variant("int4-g32-asym", group=32, asymmetric=True),
    Variant("int4", group=0, quick=(1,)),
    Variant("int8", bits=8, group=0, rows=_MANY, quick=(1, 64), elsewhere=(1,)),
    Variant("int8-g128", bits=8, quick=(1,)),
    Variant("int8-asym", bits=8, group=0, asymmetric=True),
    Variant("int4-g128 fp16", quick=(1,), elsewhere=(1,), dtype=torch.float16),
    Variant("int4-g128-asym fp16", asymmetric=True, dtype=torch.float16),
    Variant("int8 fp16", bits=8, group=0, dtype=torch.float16),
    Variant("int4-g128 fp32", dtype=torch.float32),
    Variant("int4-g128 silu", quick=(1,), parts=2, silu=True),
    Variant("int4-g128 qkv", quick=(1,), parts=3),
    Variant("int4-g128 bias+residual", extras=True),
    Variant("int4-g32 tail", group=32, tail=96),
    Variant("int4-g128 pdl", rows=(1,), quick=(1,), config=Config(16, 128, 2, pdl=True)),
    Variant("w4a8-g128", "w4a8", rows=_MANY, quick=(1, 64, 256), elsewhere=(64,)),
    Variant("w4a8-g128-asym", "w4a8", rows=(1, 64, 256), quick=(64,), asymmetric=True),
    Variant("w4a8-g32", "w4a8", group=32),
    Variant("w4a8-g128 silu", "w4a8", parts=2, silu=True),
    Variant("w8a8", "w8a8", 8, 0, rows=_MANY, quick=(1, 256), elsewhere=(256,)),
    Variant("w8a8 static tail", "w8a8", 8, 0, tail=96, static=True),
)


def cases(archs: Iterable[str], quick: bool = False) -> list[Case]:
    """All cases, with their limits.

    Args:
        archs: keys of `CARDS`.
        quick: only the most important ones, for one shape.
    """
    found: dict[str, Case] = {}
    for arch in archs:
        with _absent(arch):
            for variant in (one for one in VARIANTS if CARDS[arch].pdl or not (one.config and one.config.pdl)):
                in_quick = variant.quick if arch == "sm_90" else variant.elsewhere
                shapes = _SHAPES if variant.rows is _MANY and not quick else _SHAPES[:1]
                for rows in in_quick if quick else variant.rows:
                    for case in _launches(arch, variant, rows, shapes):
                        found.setdefault(_key(case), case)
    return list(found.values())


def _launches(arch: str, variant: Variant, rows: int, shapes: Iterable[tuple[int, int]]) -> Iterator[Case]:
    for n, k in shapes:
        with recording(arch) as recorded:
            _launch(variant, rows, n, k - variant.tail)
        for case in recorded:
            yield replace(case, name=f"{variant.name} m={rows}", limits=limits(case, _triton()))


def _launch(variant: Variant, rows: int, n: int, k: int) -> None:
    from llmquant.kernels.gpu import launch, launch_a8

    x = _meta(rows, k, dtype=variant.dtype)
    sizes = [n // variant.parts] * variant.parts
    biases = [_meta(size, dtype=variant.dtype) for size in sizes] if variant.extras else []
    if variant.kind == "w8a8":
        scale, given = _meta(n, 1, dtype=variant.dtype), _meta(1, dtype=variant.dtype) if variant.static else None
        launch_a8.linear_w8a8(x, _meta(n, k, dtype=torch.int8), scale, None, given)
        return
    groups = k // variant.group if variant.group else 1
    form = Format(variant.bits, k, groups, DTYPES.index(variant.dtype), False, variant.asymmetric)
    weights = [_meta(form.offsets(size)[2], dtype=torch.uint8) for size in sizes]
    residual = _meta(rows, sizes[0], dtype=variant.dtype) if variant.extras else None
    asked = {"residual": residual, "silu": variant.silu, "form": form.numbers()}
    launch.linear_fused(x, Product(weights, biases, sizes, variant.kind == "a16", **asked), config=variant.config)


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@contextmanager
def _absent(arch: str) -> Iterator[None]:
    """What the launch code asks of a device, answered for one that is not there."""
    from llmquant.kernels.gpu import counters, runtime

    card = CARDS[arch]
    with ExitStack() as answers:
        for owner, name, answer in (
            (runtime, "arch", lambda _: arch.replace("_", "")),
            (runtime, "processors", lambda _: card.processors),
            (counters, "counters_for", lambda _, count: _meta(count, dtype=torch.int32)),
            (torch.version, "hip", "absent" if card.hip else None),
        ):
            answers.enter_context(patch.object(owner, name, answer))
        yield


def _key(case: Case) -> str:
    """What distinguishes cases: all but numbers that only addresses are made of."""
    constants = case.constants | {"SPLIT_K": case.constants.get("SPLIT_K", 1) > 1}
    return str((case.kernel, case.arch, case.signature, constants, case.options))


#: Loops that issue more than `_slots` allows, as a multiple of it: known, and not solved. Sums are scaled once for each
#: unit, which is much for small units and many rows. By kernel, unit and rows of a block.
_OVER = {
    ("linear_a16", 64, 64): 1.1,
    ("linear_a16", 32, 16): 1.25,
    ("linear_a16", 32, 32): 1.3,
    ("linear_a16", 32, 64): 1.8,
    ("linear_a16", 32, 128): 1.2,
    ("linear_w4a8", 128, 64): 1.1,
    ("linear_w4a8", 128, 128): 1.75,
    ("linear_w4a8", 32, 16): 1.5,
    ("linear_w4a8", 32, 64): 3.0,
}
#: Instructions of loops that send weights through shared memory, as a multiple of `_slots`.
_THROUGH_SHARED = 1.45
#: Hot loops on sm_90 with few rows and one unit in a tile: what they issue for 1000 weights, and a tenth. By kernel and
#: bits of the codes.
_BUDGET = {("linear_a16", 4): 98.0, ("linear_a16", 8): 136.0, ("linear_w4a8", 4): 98.0, ("linear_w8a8", 8): 50.0}


def _triton() -> tuple[int, ...]:
    """Version of the compiler, such as (3, 7)."""
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2])


def limits(case: Case, triton: tuple[int, ...]) -> Limits:
    """What a case is allowed.

    Args:
        case: recorded; for an architecture of `CARDS`.
        triton: version of the compiler, such as (3, 7).
    """
    allowed = _limits(case)
    return _by_older_triton(case, allowed) if triton < (3, 8) else allowed


def _by_older_triton(case: Case, allowed: Limits) -> Limits:
    """What Triton before 3.8 is allowed more: it makes worse code for some cards, which our kernels cannot change.

    For mma.sync it sends converted weights through shared memory, 4 bytes of a thread at a time, and for tcgen05 it
    multiplies 8-bit integers by mma.sync.
    """
    eight_bit = case.kernel != "linear_a16"
    if allowed.tensor == "tcgen05" and eight_bit:
        return replace(allowed, tensor="mma_sync")
    if allowed.tensor != "mma_sync" or case.kernel == "linear_w8a8" or allowed.stores is None:
        return allowed
    threads = 32 * case.options["num_warps"]
    words = case.constants["BLOCK_N"] * 128 * (1 if eight_bit else 2) // (4 * threads)  # of 128 inputs
    return replace(
        allowed,
        stores=allowed.stores + words,
        prmt=128 if eight_bit else allowed.prmt,
        issue=None if allowed.issue is None else allowed.issue * _THROUGH_SHARED,
    )


def _limits(case: Case) -> Limits:
    at, card = case.constants, CARDS[case.arch]
    if "BLOCK_M" not in at or case.signature["x"] == "*fp32":
        return Limits()  # no product, or one of float32, which tensor cores do not do
    eight_bit = case.kernel != "linear_a16"
    unit = at.get("UNIT", 0)
    units = 128 // unit if 0 < unit < 128 else 1  # in one tile of 128 inputs
    sums = at["BLOCK_M"] * at["BLOCK_N"] // (32 * case.options["num_warps"])  # of a thread
    from_shared = case.kernel == "linear_w8a8"  # its weights need no conversion, so nothing is gained by registers
    two_groups = not from_shared and card.shared > 128
    return Limits(
        tensor=card.tensor,
        a_in_registers=card.tensor == "wgmma" and not from_shared,
        # Eight warps, so that four convert weights while four multiply.
        programs=max(1, 8 // case.options["num_warps"]) if two_groups else 1,
        prmt=(16 if card.tensor == "wgmma" else 32) * units,
        conversions=sums * units if eight_bit else 0,
        stores=None if card.hip else (8 if at.get("ASYMMETRIC") else 4) * units,  # scales and zeros may take that way
        waits=units if card.tensor == "wgmma" else None,
        issue=None if card.hip else _issue(case, units),
    )


def _issue(case: Case, units: int) -> float:
    at = case.constants
    over = _OVER.get((case.kernel, at.get("UNIT", 0), at["BLOCK_M"]), 1.0)
    slots = _slots(case) * CARDS[case.arch].slack * over
    if case.arch == "sm_90" and at["BLOCK_M"] <= 32 and units == 1:
        return min(slots, _BUDGET[case.kernel, _bits(case)])
    return slots


def _slots(case: Case) -> float:
    """Instructions that can be issued while memory delivers 1000 weights, or the tensor cores multiply them.

    The longer of the two: a loop that issues more would be what limits the kernel.
    """
    at, card = case.constants, CARDS[case.arch]
    eight_bit = case.kernel != "linear_a16"
    memory = 1000 * _bits(case) / 8 / card.bytes
    product = 1000 * 2 * at["BLOCK_M"] / (card.flops * (2 if eight_bit else 1))
    return _SCHEDULERS * max(memory, product)


def _bits(case: Case) -> int:
    return 8 if case.kernel == "linear_w8a8" else case.constants.get("BITS", 4)
