"""A block of GPTQ in Triton: the bits of the torch definition."""

from __future__ import annotations

import pytest
import torch

from llmquant.kernels.gpu import rounding
from llmquant.kernels.ops import round_block as definition
from llmquant.kernels.ops.round_block import Columns

_CASES = ((1, 1, 8, 0.1), (7, 67, 2, 1e-6), (33, 40, 4, 0.1), (128, 21, 3, 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter rounds to bfloat16 wrongly
@pytest.mark.parametrize("asymmetric", [False, True])
def test_equals_the_definition(device: str, dtype: torch.dtype, asymmetric: bool) -> None:
    for inputs, outputs, bits, size in _CASES:
        torch.manual_seed(inputs)
        low = -(1 << bits - 1)
        scales = (torch.randn(3, outputs) * size).to(dtype).float()
        zeros = torch.randint(low, -low, (3, outputs)).float().to(device) if asymmetric else None
        columns = Columns(torch.where(scales == 0, 2.0**-24, scales).to(device), zeros, low, -low - 1, dtype)
        inner, groups = torch.randn(inputs, inputs).to(device) * 0.1, torch.randint(0, 3, (inputs,)).to(device)
        wanted = [torch.randn(inputs, outputs).to(device), torch.randn(inputs, outputs).to(device)]
        wanted.append(torch.zeros(inputs, outputs, dtype=torch.int8, device=device))
        found = [tensor.clone() for tensor in wanted]
        definition.round_block(wanted[0], wanted[1], inner, groups, columns, wanted[2])
        rounding.round_block(found[0], found[1], inner, groups, columns, found[2])
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
