"""Tables in training give the rows of the packed table, and learn by them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from llmquant.nn.embedding import PackedEmbedding
from llmquant.nn.fake_embedding import FakeEmbedding
from llmquant.spec import Scheme
from tests.nn.test_fake_weight import rounded

IDS = torch.tensor([[3, 1, 3], [0, 19, 7]])


def made(name: str, ranges: str, dtype: torch.dtype, module: nn.Embedding | None = None) -> FakeEmbedding:
    torch.manual_seed(0)
    dense = nn.Embedding(20, 64, padding_idx=0) if module is None else module
    dense = dense.to(dtype)
    table = FakeEmbedding(dense)
    table.hold(
        rounded(dense.weight.detach(), name, dtype), Scheme.parse(name), ranges, nn.Parameter(dense.weight.detach())
    )
    return table


@pytest.mark.parametrize("ranges", ["lsq", "frozen", "scales-only"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["int4-g32", "int3-g16-asym", "int8", "int4-tensor"])
def test_rows_are_those_of_the_packed_table(name: str, dtype: torch.dtype, ranges: str) -> None:
    table = made(name, ranges, dtype)
    packed = PackedEmbedding.from_quantized(table.quantized(), table.scheme)
    rows = table(IDS)
    assert rows.dtype == dtype
    assert torch.equal(rows, packed(IDS))


def test_scaled_rows() -> None:
    module = Gemma3TextScaledWordEmbedding(20, 64, 0, embed_scale=8.0)
    table = made("int4-g32", "lsq", torch.bfloat16, module)
    packed = PackedEmbedding.from_quantized(table.quantized(), table.scheme).stand_for(module)
    assert torch.equal(table(IDS), packed(IDS))


def test_only_rows_that_are_looked_up_learn() -> None:
    dense = nn.Embedding(20, 64)
    dense.padding_idx = 0  # its row is no zero, as after another's training
    table = made("int4-g32", "lsq", torch.float32, dense)
    table(IDS).square().sum().backward()
    assert table.weight is not None
    assert table.weight.grad is not None
    learned = table.weight.grad.abs().sum(-1).nonzero().flatten().tolist()
    assert learned == [1, 3, 7, 19]  # 0 is padding
    change = table.weight_scale_change
    assert change is not None
    assert change.grad is not None
    assert set(change.grad.abs().sum(-1).nonzero().flatten().tolist()) >= {1, 3, 7, 19}


def test_ranges_follow_the_whole_table() -> None:
    table = made("int4-g32", "minmax", torch.float32)
    assert table.weight is not None
    before = table.weight_scale.clone()
    table.weight.data.mul_(3)
    table(IDS)
    torch.testing.assert_close(table.weight_scale[1:], 3 * before[1:])


def test_before_rounding_rows_are_dense() -> None:
    table = made("int4-g32", "lsq", torch.float32)
    table.fake_quant = False
    assert table.weight is not None
    assert torch.equal(table(IDS), table.weight[IDS])
