"""The identity pass and the block driver against the model's own forward, for every family that plan knows."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmquant.engine.capture import capture
from llmquant.engine.statistics import HessianCollector
from llmquant.models.skeleton import decoder_blocks

SMALL: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    "mistral": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen3": {
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    },
    # Sliding-window and full-attention layers have different masks and rotary tables: the trap for layer-0 arguments.
    "gemma3_text": {
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "opt": {"hidden_size": 32, "ffn_dim": 64, "num_attention_heads": 4, "word_embed_proj_dim": 32},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4},
    "phi": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4},
    "qwen3_moe": {
        "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "num_experts": 4,
        "num_experts_per_tok": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    },
}  # fmt: skip


def small_model(model_type: str):
    common = {"vocab_size": 96, "num_hidden_layers": 3, "max_position_embeddings": 64, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **(common | SMALL[model_type]))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("model_type", SMALL)
def test_block_by_block_equals_the_full_forward(model_type):
    model = small_model(model_type)
    windows = torch.randint(1, 96, (5, 16))
    _, blocks = decoder_blocks(model)
    outputs = []
    handle = blocks[-1].register_forward_hook(lambda *a: outputs.append(a[2][0] if isinstance(a[2], tuple) else a[2]))
    with torch.no_grad():
        model.base_model(input_ids=windows, use_cache=False)
        handle.remove()
        inputs = capture(model.base_model, list(blocks), windows)
        for index, block in enumerate(blocks):
            inputs.advance(index, block)
    assert torch.equal(torch.cat(list(inputs.hidden)), outputs[0])


def test_hessians_are_those_of_the_real_inputs_and_shared_where_inputs_are():
    model = small_model("llama")
    windows = torch.randint(1, 96, (3, 16))
    _, blocks = decoder_blocks(model)
    block = blocks[0]
    names = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]
    layers = {name: block.get_submodule(name) for name in names}
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def remember(name: str):
        return lambda _, inputs: seen[name].append(inputs[0].double())

    handles = [layer.register_forward_pre_hook(remember(name)) for name, layer in layers.items()]
    with torch.no_grad():
        model.base_model(input_ids=windows, use_cache=False)
        for handle in handles:
            handle.remove()
        inputs = capture(model.base_model, list(blocks), windows)
        collector = HessianCollector(layers)
        with collector.attached(block):
            inputs.run(0, block)
    taken = {name: collector.take(name) for name in names}
    for name in names:
        x = torch.cat(seen[name]).reshape(-1, seen[name][0].shape[-1])
        assert taken[name].tokens == x.shape[0] == 48
        hessian = taken[name].hessian
        assert hessian is not None
        torch.testing.assert_close(hessian.double(), x.T @ x / 48, rtol=1e-5, atol=1e-6)
    assert taken["self_attn.q_proj"].hessian is taken["self_attn.k_proj"].hessian
    assert taken["mlp.gate_proj"].hessian is taken["mlp.up_proj"].hessian
    assert taken["self_attn.q_proj"].hessian is not taken["mlp.gate_proj"].hessian
