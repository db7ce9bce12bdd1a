"""The definition of a block of GPTQ, against sums in float64."""

from __future__ import annotations

import torch

from llmquant.kernels.ops.round_block import Columns, round_block


def test_each_input_is_rounded_with_what_later_errors_ask_of_it() -> None:
    torch.manual_seed(0)
    weight, inner = torch.randn(12, 6), torch.randn(12, 12) * 0.2
    columns = Columns(torch.rand(2, 6) * 0.2 + 0.1, torch.randint(-8, 8, (2, 6)).float(), -8, 7, torch.float32)
    groups = torch.randint(0, 2, (12,))
    targets, errors, codes = weight + 0.05, weight.clone(), torch.zeros(12, 6, dtype=torch.int8)
    round_block(targets, errors, inner, groups, columns, codes)

    assert columns.zeros is not None
    scales, zeros = columns.scales[groups].double(), columns.zeros[groups].double()
    values = (codes - zeros) * scales
    torch.testing.assert_close(errors.double(), weight - values, rtol=0, atol=1e-6)
    # `inner[j, k]` counts for k behind j only.
    asked = weight + 0.05 + inner.double().triu(1) @ (weight - values)
    torch.testing.assert_close(targets.double(), asked - values, rtol=0, atol=1e-5)
    nearest = (asked / scales + zeros).round().clamp(-8, 7)
    assert torch.equal(codes.double(), nearest)
    assert not torch.equal(nearest, (weight / scales + zeros).round().clamp(-8, 7))
