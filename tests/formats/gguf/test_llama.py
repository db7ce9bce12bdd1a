"""Names, hyperparameters and the order of rows of a Llama in GGUF."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from llmquant.errors import PlanError
from llmquant.formats.gguf.llama import hyperparameters, named, obstacles, turn, turn_back, turned_heads
from llmquant.formats.gguf.reference import source_rows


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.11.self_attn.q_proj.bias", "blk.11.attn_q.bias"),
        ("model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight"),
        ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("model.layers.0.mlp.gate_proj.weight", "blk.0.ffn_gate.weight"),
    ],
)
def test_names(key: str, name: str) -> None:
    assert named(key) == name


@pytest.mark.parametrize(
    "key",
    ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.q_norm.weight", "model.lm_head.weight",
     "model.layers.0.mlp.up_proj.weight_scale", "layers.0.mlp.up_proj.weight", "model.layers.0.lm_head.weight"],
)  # fmt: skip
def test_keys_without_a_place(key: str) -> None:
    with pytest.raises(PlanError, match="has no place in a GGUF file of a llama"):
        named(key)


def test_rows_turn_and_turn_back() -> None:
    rows = torch.arange(24 * 3).reshape(24, 3)
    for heads in (2, 3, 6):
        turned = turn(rows, heads)
        assert torch.equal(turned, rows[source_rows(24, heads)])
        assert torch.equal(turn_back(turned, heads), rows)
    assert torch.equal(turn(rows[:, 0], 2), turn(rows, 2)[:, 0])  # a bias


def test_only_queries_and_keys_turn() -> None:
    names = ("blk.0.attn_q.weight", "blk.3.attn_k.bias", "blk.0.attn_v.weight", "output.weight", "blk.1.ffn_up.weight")
    assert [turned_heads(name, 8, 2) for name in names] == [8, 2, None, None, None]


def test_hyperparameters() -> None:
    config = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, head_dim=24,
        num_key_value_heads=2, max_position_embeddings=77, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )  # fmt: skip
    found = hyperparameters(config.to_dict())
    assert found["general.architecture"] == "llama"
    assert {key.removeprefix("llama."): value for key, value in found.items() if key.startswith("llama.")} == {
        "vocab_size": 100, "context_length": 77, "embedding_length": 64, "block_count": 3, "feed_forward_length": 96,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 24,
        "attention.value_length": 24, "attention.layer_norm_rms_epsilon": 1e-6, "rope.dimension_count": 24,
        "rope.freq_base": 500000.0,
    }  # fmt: skip


def test_obstacles() -> None:
    llama3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    assert list(obstacles(LlamaConfig().to_dict())) == []
    assert "positions are scaled" in next(obstacles(LlamaConfig(rope_parameters=llama3).to_dict()))
    assert "computes with SiLU, this model with gelu" in next(obstacles(LlamaConfig(hidden_act="gelu").to_dict()))
