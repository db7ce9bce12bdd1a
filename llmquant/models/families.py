"""What we know of architectures, as data: the words by which model families name their parts.

A new family usually needs one more word here and no code. Names are compared per component of the dotted module name.
"""

from __future__ import annotations

ATTENTION = ("attn", "attention")  # anywhere in a component, in any case: self_attn, SelfAttention, linear_attn

QKV = frozenset(
    {
        "q_proj", "k_proj", "v_proj", "qkv_proj",                   # Llama, Qwen, Gemma, OPT; Phi-3
        "query_key_value", "c_attn", "Wqkv", "W_pack", "wqkv",      # GPT-NeoX, Bloom, Falcon; GPT-2; MPT; Baichuan
        "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj",  # DeepSeek
        "in_proj_qkvz", "in_proj_ba",                               # Qwen3-Next, linear attention
    }
)  # fmt: skip
ATTENTION_OUTPUT = frozenset({"o_proj", "out_proj", "dense", "c_proj", "wo"})

GATE_UP = frozenset({"gate_proj", "up_proj", "gate_up_proj", "fc1", "fc_in", "c_fc", "dense_h_to_4h", "w1", "w3"})
DOWN = frozenset({"down_proj", "fc2", "fc_out", "c_proj", "dense_4h_to_h", "w2"})

EXPERTS = frozenset({"experts"})  # the component under which all of a layer's routed experts lie
STACKED_EXPERTS = "expert"  # in the name or class of whatever stacks one matrix per expert in a 3-D parameter
ROUTERS = frozenset({"router", "shared_expert_gate"})
ROUTER_WORD = "router"  # in the name of a linear layer, or of what it is part of
ROUTER_BESIDE_EXPERTS = "gate"  # a router only where `experts` is its sibling; all that is in it

# Layers that readers such as vLLM load as one, so they need one scheme. Families that fuse them themselves have one
# module (qkv_proj, gate_up_proj, query_key_value) and no set.
FUSED = (
    ("qkv", frozenset({"q_proj", "k_proj", "v_proj"})),
    ("qkv_a", frozenset({"q_a_proj", "kv_a_proj_with_mqa"})),
    ("gate_up", frozenset({"gate_proj", "up_proj"})),
    ("gate_up", frozenset({"w1", "w3"})),
)
