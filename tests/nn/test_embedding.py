"""`PackedEmbedding` against nn.Embedding and Gemma's scaled one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding

from llmquant.algorithms.rounding import rtn
from llmquant.nn.embedding import PackedEmbedding, is_table
from llmquant.spec import Scheme
from llmquant.statistics.base import LayerStatistics

IDS = torch.tensor([[3, 0, 19], [7, 7, 1]])


def packed(module: nn.Embedding, name: str) -> PackedEmbedding:
    scheme = Scheme.parse(name)
    result = rtn.quantize(
        module.weight.detach(), LayerStatistics(), scheme, rtn.Options(), scale_dtype=module.weight.dtype
    )
    layer = PackedEmbedding.from_quantized(result.quantized, scheme)
    assert isinstance(layer, PackedEmbedding)
    return layer.stand_for(module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["int8", "int4-g8-asym", "int3-g24", "int2-tensor"])
@pytest.mark.parametrize("scale", [None, 64**0.5, 33.941125])
def test_equals_its_dense_self(name: str, dtype: torch.dtype, scale: float | None) -> None:
    plain = nn.Embedding(20, 24, padding_idx=0)
    module = (plain if scale is None else Gemma3TextScaledWordEmbedding(20, 24, 0, scale)).to(dtype)
    layer = packed(module, name)
    dense = layer.dense()
    assert type(dense) is type(module)
    assert (dense.num_embeddings, dense.embedding_dim, dense.padding_idx) == (20, 24, 0)
    assert dense.weight.dtype == layer(IDS).dtype == dtype
    assert torch.equal(dense.weight, layer.dequantize())
    assert torch.equal(layer(IDS), dense(IDS))
    assert torch.equal(copy.deepcopy(layer)(IDS), dense(IDS))
    assert set(layer.state_dict()) >= {"weight_packed", "weight_scale", "weight_shape"}


def test_compiles_without_a_break() -> None:
    layer = packed(Gemma3TextScaledWordEmbedding(20, 24, 0, 5.5), "int4-g8")
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(IDS), layer(IDS))


def test_describes_itself() -> None:
    layer = PackedEmbedding(64, 32, Scheme.parse("int8"))
    assert repr(layer) == "PackedEmbedding(32, 64, scheme=int8)"
    assert layer.kernel_name().startswith("embedding_int8: ")


def test_what_it_can_stand_for() -> None:
    assert is_table(nn.Embedding(4, 8))
    assert is_table(Gemma3TextScaledWordEmbedding(4, 8, 0, 2.0))
    assert not is_table(nn.Embedding(4, 8, max_norm=1.0))
    assert not is_table(OPTLearnedPositionalEmbedding(4, 8))
    assert not is_table(BartScaledWordEmbedding(4, 8, 0, 2.0))
    assert not is_table(nn.Linear(4, 8))
