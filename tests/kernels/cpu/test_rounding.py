"""A block of GPTQ in C++: the bits of the torch definition on every instruction set, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from llmquant.kernels.cpu import native, rounding
from llmquant.kernels.ops import round_block as definition
from llmquant.kernels.ops.round_block import Columns

pytestmark = pytest.mark.skipif(native.library() is None, reason="llmquant is installed without its C++ kernels")


def case(inputs: int, outputs: int, dtype: torch.dtype, bits: int, *, asymmetric: bool, size: float = 0.1) -> list[Any]:
    """Arguments of `round_block`."""
    generator = torch.Generator().manual_seed(inputs * outputs)
    low, groups = -(1 << bits - 1), 3

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    scales = (normal(groups, outputs) * size).to(dtype).float()
    zeros = torch.randint(low, -low, (groups, outputs), generator=generator).float() if asymmetric else None
    columns = Columns(torch.where(scales == 0, 2.0**-24, scales), zeros, low, -low - 1, dtype)
    which = torch.randint(0, groups, (inputs,), generator=generator)
    inner = normal(inputs, inputs) * 0.1
    return [
        normal(inputs, outputs),
        normal(inputs, outputs),
        inner,
        which,
        columns,
        torch.empty(inputs, outputs).char(),
    ]


def rounded(run: Callable[..., None], arguments: list[Any], **options: Any) -> tuple[torch.Tensor, ...]:
    """What `run` makes of targets, errors and codes."""
    changed: list[Any] = [value if isinstance(value, Columns) else value.clone() for value in arguments]
    run(*changed, **options)
    return changed[0], changed[1], changed[5]


@pytest.mark.parametrize("instructions", native.ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_equals_the_definition(instructions: str, dtype: torch.dtype, asymmetric: bool) -> None:
    if instructions not in native.supported():
        pytest.skip(f"this machine cannot run {instructions}")
    for inputs, outputs, bits, size in ((1, 1, 8, 0.1), (7, 67, 2, 1e-6), (40, 129, 4, 0.1), (128, 21, 3, 0.5)):
        arguments = case(inputs, outputs, dtype, bits, asymmetric=asymmetric, size=size)
        wanted = rounded(definition.round_block, arguments)
        found = rounded(rounding.round_block, arguments, instructions=instructions)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_refuses_what_it_would_read_out_of_bounds() -> None:
    arguments = case(8, 5, torch.float32, 4, asymmetric=True)
    columns = arguments[4]
    bad = {
        0: [arguments[0].double(), arguments[0][:, :4], arguments[0].t().contiguous().t()],
        1: [arguments[1][:7]],
        2: [arguments[2][:, :7].contiguous()],
        3: [arguments[3].int(), arguments[3] + 3, arguments[3] - 3],
        4: [replace(columns, scales=columns.scales[:, :4].contiguous()), replace(columns, zeros=columns.zeros[:2])],
        5: [arguments[5].float()],
    }
    for position, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=r"expected contiguous|groups are in 0 to 2"):
                rounded(rounding.round_block, [*arguments[:position], value, *arguments[position + 1 :]])
