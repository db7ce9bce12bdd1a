"""Heads that share the packed weight of an embedding."""

from __future__ import annotations

from typing import Any

import torch

from llmquant.hf.place import place_empty
from llmquant.nn.linear import PackedLinear
from llmquant.spec import Scheme
from tests.architectures.tiny import tiny_model


def test_a_head_keeps_its_own_bias() -> None:
    model: Any = tiny_model("gptj", tie_word_embeddings=True)
    bias = model.lm_head.bias
    assert bias is not None
    place_empty(model, {"transformer.wte": Scheme.parse("int8-g32")}, torch.bfloat16)
    assert isinstance(model.lm_head, PackedLinear)
    assert model.lm_head.bias is bias
    assert model.lm_head.weight_packed is model.transformer.wte.weight_packed
