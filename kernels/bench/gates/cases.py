"""What the compile gates compile.

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

from llmquant.kernels.bench.gates.compile import Case, recording
from llmquant.kernels.bench.gates.limits import CARDS
from llmquant.kernels.gpu.choose.config import Config
from llmquant.kernels.gpu.weight import DTYPES, Format
from llmquant.kernels.product import Product
from llmquant.spec import Scheme

QUICK_ARCHS = ("sm_80", "sm_90", "sm_100")
#: Triton versions that the gates were run with: the one that the pinned torch brings, and a newer one. The extra of
#: pyproject.toml asks for the oldest or newer.
TRITON_SEEN = ("3.7.1", "3.9.0")
#: outputs x inputs: attention, and both halves of the feed-forward part, of Llama 3 8B; the largest of 70B.
_SHAPES = ((6144, 4096), (28672, 4096), (4096, 14336), (57344, 8192))
_MANY, _FEW = (1, 16, 32, 64, 128, 256, 512, 1024), (1, 64)


@dataclass(frozen=True)
class Variant:
    """A kind of launch; the name begins with a scheme, w4a8 being int4 with activations in 8 bits."""

    name: str
    rows: tuple[int, ...] = _FEW  # of x, one launch each; in all shapes if they are `_MANY`, else in one
    quick: tuple[int, ...] = ()  # those of the quick run on sm_90
    elsewhere: tuple[int, ...] = ()  # those of the quick run on the other architectures
    dtype: torch.dtype = torch.bfloat16  # of x and of the scales
    parts: int = 1  # weights in the launch
    silu: bool = False  # whether they are a pair
    extras: bool = False  # whether there are biases and a residual
    tail: int = 0  # inputs that are missing to the last tile
    static: bool = False  # whether the scale of x is given
    config: Config | None = None  # how to cut the work; None for what dispatch.py chooses


VARIANTS = (
    Variant("int4-g128", _MANY, quick=(1, 32, 64, 256, 1024), elsewhere=(1, 64)),
    Variant("int4-g128-asym", _MANY, quick=(1, 64), elsewhere=(1,)),
    Variant("int4-g64", _MANY, quick=(1,)),
    Variant("int4-g32", _MANY, quick=(1, 64), elsewhere=(1,)),
    Variant("int4-g32-asym"),
    Variant("int4", quick=(1,)),
    Variant("int8", _MANY, quick=(1, 64), elsewhere=(1,)),
    Variant("int8-g128", quick=(1,)),
    Variant("int8-asym"),
    Variant("int4-g128 fp16", quick=(1,), elsewhere=(1,), dtype=torch.float16),
    Variant("int4-g128-asym fp16", dtype=torch.float16),
    Variant("int8 fp16", dtype=torch.float16),
    Variant("int4-g128 fp32", dtype=torch.float32),
    Variant("int4-g128 silu", quick=(1,), parts=2, silu=True),
    Variant("int4-g128 qkv", quick=(1,), parts=3),
    Variant("int4-g128 bias+residual", extras=True),
    Variant("int4-g32 tail", tail=96),
    Variant("int4-g128 pdl", (1,), quick=(1,), config=Config(16, 128, 2, pdl=True)),
    Variant("w4a8-g128", _MANY, quick=(1, 64, 256), elsewhere=(64,)),
    Variant("w4a8-g128-asym", (1, 64, 256), quick=(64,)),
    Variant("w4a8-g32"),
    Variant("w4a8-g128 silu", parts=2, silu=True),
    Variant("w8a8", _MANY, quick=(1, 256), elsewhere=(256,)),
    Variant("w8a8 static tail", tail=96, static=True),
)
#: Schemes of weights that GPTQ rounds.
_ROUNDED = ("int4-g128", "int4-g128-asym")


def cases(archs: Iterable[str], quick: bool = False) -> list[Case]:
    """All cases for some of `CARDS`, or only the most important ones, for one shape."""
    found: dict[str, Case] = {}
    for arch in archs:
        with _absent(arch):
            for variant in (one for one in VARIANTS if CARDS[arch].pdl or not (one.config and one.config.pdl)):
                in_quick = variant.quick if arch == "sm_90" else variant.elsewhere
                shapes = _SHAPES if variant.rows is _MANY and not quick else _SHAPES[:1]
                for rows in in_quick if quick else variant.rows:
                    for n, k in shapes:
                        with recording(arch) as recorded:
                            _launch(variant, rows, n, k - variant.tail)
                        for case in recorded:
                            found.setdefault(_key(case), replace(case, name=f"{variant.name} m={rows}"))
            for name in _ROUNDED[:1] if quick else _ROUNDED:
                with recording(arch) as recorded:
                    _round(name)
                for case in recorded:
                    found.setdefault(_key(case), replace(case, name=f"{name} rounded"))
    return list(found.values())


def _launch(variant: Variant, rows: int, n: int, k: int) -> None:
    from llmquant.kernels.gpu import launch, launch_a8

    kind, _, rest = variant.name.split()[0].partition("-")
    x = _meta(rows, k, dtype=variant.dtype)
    if kind == "w8a8":
        scale, given = _meta(n, 1, dtype=variant.dtype), _meta(1, dtype=variant.dtype) if variant.static else None
        launch_a8.linear_w8a8(x, _meta(n, k, dtype=torch.int8), scale, None, given)
        return
    scheme = Scheme.parse("-".join(filter(None, ("int4" if kind == "w4a8" else kind, rest))))
    groups = k // scheme.group_size if scheme.group_size else 1
    form = Format(scheme.bits, k, groups, DTYPES.index(variant.dtype), False, not scheme.symmetric)
    sizes = [n // variant.parts] * variant.parts
    weights = [_meta(form.offsets(size)[2], dtype=torch.uint8) for size in sizes]
    biases = [_meta(size, dtype=variant.dtype) for size in sizes] if variant.extras else []
    residual = _meta(rows, sizes[0], dtype=variant.dtype) if variant.extras else None
    asked = {"residual": residual, "silu": variant.silu, "form": form.numbers()}
    launch.linear_fused(x, Product(weights, biases, sizes, kind != "w4a8", **asked), config=variant.config)


def _round(name: str) -> None:
    from llmquant.kernels.gpu import rounding
    from llmquant.kernels.ops.round_block import Columns

    scheme, (n, k) = Scheme.parse(name), _SHAPES[0]
    block, scales = _meta(128, n, dtype=torch.float32), _meta(k // 128, n, dtype=torch.float32)
    zeros = None if scheme.symmetric else scales
    columns = Columns(scales, zeros, scheme.code_min, scheme.code_max, torch.bfloat16)
    square, codes = _meta(128, 128, dtype=torch.float32), _meta(128, n, dtype=torch.int8)
    rounding.round_block(block, block, square, _meta(128, dtype=torch.int64), columns, codes)


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
