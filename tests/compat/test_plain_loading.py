"""What plain transformers does with packed layers; tests/architectures loads them there."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmquant.compat.plain_loading import upcast_scales

NAMES = ["model.layers.0.mlp.up_proj", "lm_head"]


@pytest.mark.parametrize(
    ("dtype", "words", "found"),
    [
        ("bfloat16", ["scale"], NAMES),  # HYV4
        ("float32", ["scale"], []),
        ("bfloat16", ["lm_head", "norm"], []),  # the whole layer, packed or not
        ("bfloat16", ["up_proj", "weight_*"], NAMES[1:]),
        ("float16", ["up_proj.weight_scale"], NAMES[:1]),
        ("bfloat16", [], []),
    ],
)
def test_words_that_mean_scales_too(dtype: str, words: list[str], found: list[str]) -> None:
    class Words(LlamaForCausalLM):
        _keep_in_fp32_modules_strict = words

    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, dtype=dtype
    )
    with torch.device("meta"):
        model = Words(config)
    reasons = upcast_scales(model, NAMES)
    assert list(reasons) == found
    assert all(any(f"'{word}'" in reason for word in words) for reason in reasons.values())
