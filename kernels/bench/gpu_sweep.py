"""The sweep of correctness: our kernels on small weights of awkward sizes, before anything is timed.

Every case has a weight whose padding holds NaN, rows between NaN, results in poisoned memory and outlier activations;
each is run twice. The exact kernels are judged in float32, before a result is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.bench.contender import Shape
from llmquant.kernels.bench.gpu_cases import FORMATS, Format, Plan
from llmquant.kernels.bench.gpu_check import EXACT, WRONG, guarded, judge, relative
from llmquant.kernels.bench.gpu_ours import Ours
from llmquant.kernels.bench.gpu_weights import Reference, Weight, random_weight, reference
from llmquant.kernels.gpu.choose.config import DENSE, Config
from llmquant.kernels.gpu.weight import Format as Layout
from llmquant.kernels.gpu.weight import prepare, restore
from llmquant.numerics.pack import pack_zeros, unpack_zeros
from llmquant.spec import Scheme

#: The name of every case begins so.
SWEEP = "sweep"
_QUICK = (1, 3, 16, 17, 64, 65, 129, 300)
_FULL = (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65, 127, 129, 256, 300, 1024)
_DRY = (1, 17)
#: Beside the formats that are timed.
_QUICK_SCHEMES = ("int4", "int4-g64-asym")
_FULL_SCHEMES = (
    "int4",
    "int4-asym",
    "int4-g32-asym",
    "int4-g64",
    "int4-g64-asym",
    "int8-g128",
    "int8-asym",
    "int3-g32",
    "int2-g64",
)
_CONFIGS = ((16, Config(16, 64, 2, 4, 3)), (64, Config(64, 128, 2, 8, 3)), (1 << 30, Config(128, 128, 1, 8, 3)))
_DENSE_FROM = 129


@dataclass(frozen=True)
class Case:
    """One weight, and the numbers of rows that it is multiplied with.

    Attributes:
        form: what is computed; its name is one of `gpu_cases.FORMATS`, or its scheme's.
        shape: of the weight.
        dtype: name of the dtype of activations and scales.
        batches: numbers of rows.
    """

    form: Format
    shape: Shape
    dtype: str
    batches: tuple[int, ...]

    @property
    def name(self) -> str:
        """For messages, and as a key."""
        return f"{SWEEP} {self.form.name} {self.shape} {self.dtype}"


class Checked(Ours):
    """Ours for a format that is not timed."""

    def __init__(self, form: Format, config: Config | None = None) -> None:
        super().__init__(form.name, config)
        self._form = form

    @property
    def format(self) -> Format:
        """What it computes."""
        return self._form


def cases(plan: Plan) -> list[Case]:
    """The cases of a plan's sweep."""
    if plan.dry:
        return [Case(FORMATS[name], _shapes(name)[1], "float16", _DRY) for name in plan.formats]
    if plan.sweep == "none":
        return []
    full = plan.sweep == "full"
    forms = [FORMATS[name] for name in plan.formats]
    forms += [Format(name, name, 16) for name in (_FULL_SCHEMES if full else _QUICK_SCHEMES)]
    batches = _FULL if full else _QUICK
    found = []
    for form in forms:
        one, tail, blocks = _shapes(form.name)
        found += [Case(form, blocks, "bfloat16", batches), Case(form, tail, "float16", batches)]
        if full:
            found += [Case(form, one, "bfloat16", batches), Case(form, tail, "bfloat16", batches)]
    return found


def _shapes(name: str) -> list[Shape]:
    """One output; a tail of outputs and inputs; both, and several blocks."""
    form = FORMATS.get(name)
    scheme = Scheme.parse(form.scheme if form else name)
    step = scheme.group_size or 36
    return [Shape(1, step), Shape(72, 5 * step), Shape(264, (1024 // step + 1) * step)]


@dataclass
class Outcome:
    """Of a case.

    Attributes:
        error: the largest of a result before it is rounded; of a rounded one for 8-bit activations.
        problems: in words; each makes the run fail.
        wrong: whether the format is not to be timed; else it is only less precise than promised.
    """

    error: float = 0.0
    problems: list[str] = field(default_factory=list)
    wrong: bool = False


def run(case: Case, device: str) -> Outcome:
    """Check a case."""
    dtype: torch.dtype = getattr(torch, case.dtype)
    whole, weight = _padded(case, device, dtype)
    found = Outcome(problems=[] if case.form.name == "W8A8" else list(_layout_problems(weight)))
    found.wrong = bool(found.problems)
    for m in case.batches:
        x = guarded(m, case.shape.k, dtype, device, outliers=m % 2 == 1 and not case.form.name.startswith("W4A8"))
        wanted = reference(x, weight, quantized=case.form.name == "W8A8")
        for config in _configs(m):
            kernel = Checked(case.form, config)
            if config == DENSE and case.form.activations == 8:
                continue
            prepared = kernel.prepare(whole)
            if case.form.name != "W8A8":
                prepared = (prepared[0], case.shape.n, prepared[2])
            _check(found, kernel, x, prepared, case.shape.n, wanted)
    return found


def _check(found: Outcome, kernel: Checked, x: Tensor, prepared: Any, n: int, wanted: Reference) -> None:
    """Add what one product shows."""
    where = f"M={x.shape[0]} {kernel.variant}"
    verdict = judge(kernel, x, prepared, n, wanted)
    error = verdict.error
    if kernel.format.activations == 16 and kernel.config != DENSE:
        error = relative(wanted.part(kernel.call(x, prepared, torch.float32)), wanted.values)
        if not error <= EXACT:
            found.problems.append(f"{where}: {error:.2e} before rounding, more than {EXACT:.0e}")
    if verdict.problem:
        found.problems.append(f"{where}: {verdict.problem}")
    found.wrong |= verdict.problem is not None or (kernel.format.activations == 16 and not error <= _limit(kernel))
    if kernel.config != DENSE:
        found.error = max(found.error, error)


def _limit(kernel: Checked) -> float:
    return inf if kernel.config == DENSE else WRONG


def _padded(case: Case, device: str, dtype: torch.dtype) -> tuple[Weight, Weight]:
    """A weight with NaN as the scales of the outputs that only fill the last block; and the same without these."""
    scheme, shape, filled = Scheme.parse(case.form.scheme), case.shape, case.shape.n
    if case.form.name != "W8A8":  # whose weight is not padded
        has = Layout(scheme.bits, shape.k, 1, 0, False, False)
        filled = has.rows(shape.n)
    whole = random_weight(scheme, Shape(filled, shape.k), device, dtype, lowest=True)
    whole.scale[1::7, :1] = 0  # groups of zeros
    whole.scale[shape.n :] = torch.nan
    zero = whole.zero
    if zero is not None:
        zero = pack_zeros(unpack_zeros(zero, scheme.bits, filled)[: shape.n], scheme.bits)
    return whole, Weight(scheme, shape, whole.packed[: shape.n], whole.scale[: shape.n], zero)


def _configs(m: int) -> Iterator[Config]:
    yield next(config for most, config in _CONFIGS if m <= most)
    if m >= _DENSE_FROM:
        yield DENSE


def _layout_problems(weight: Weight) -> Iterator[str]:
    """Whether a prepared weight can be turned back, and is the same wherever it was made."""
    stored = (weight.packed, weight.scale, weight.zero)
    more = (weight.scheme.bits, weight.shape.k)
    prepared = prepare(*stored, *more)
    back = restore(prepared, Layout.of(weight.scale, weight.zero, *more), weight.shape.n)
    if any(found is not None and not _same(found, wanted) for found, wanted in zip(back, stored, strict=True)):
        yield "restore does not undo prepare"
    zero = None if weight.zero is None else weight.zero.cpu()
    if not torch.equal(prepare(weight.packed.cpu(), weight.scale.cpu(), zero, *more), prepared.cpu()):
        yield "prepare on the CPU gives other bytes"


def _same(found: Tensor, wanted: Tensor | None) -> bool:
    return wanted is not None and found.dtype == wanted.dtype and torch.equal(found, wanted)
