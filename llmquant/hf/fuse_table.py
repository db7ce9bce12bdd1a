"""Which decoder layers can be fused, as data: the names of their parts.

A layer fits if it computes

    x = x + o(attention(rope(norm(q(input_norm(x))), norm(k(input_norm(x)))), v(input_norm(x))))
    x = x + down(silu(gate(mlp_norm(x))) * up(mlp_norm(x)))

with `norm` optional. Anything else (scaled residuals, norms after a part, other activations) does not belong here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DecoderParts:
    """Names of the submodules of one decoder layer class, and where its attention finds its window.

    Attributes:
        norm: class of the RMS norms.
        attention: class of the attention module.
        mlp: class of the feed-forward module.
        head_norms: whether queries and keys are normalized per head, by `q_norm` and `k_norm`.
        window: who holds `sliding_window`: "attention", "config" or nobody.
    """

    norm: str
    attention: str
    mlp: str
    head_norms: bool = False
    window: str | None = None


INPUT_NORM, ATTENTION, MLP_NORM, MLP = "input_layernorm", "self_attn", "post_attention_layernorm", "mlp"
QKV, OUT, GATE_UP, DOWN = ("q_proj", "k_proj", "v_proj"), "o_proj", ("gate_proj", "up_proj"), "down_proj"
HEAD_NORMS = ("q_norm", "k_norm")
ACTIVATION, SILU = "act_fn", frozenset({"SiLU", "SiLUActivation"})

FAMILIES = {
    "LlamaDecoderLayer": DecoderParts("LlamaRMSNorm", "LlamaAttention", "LlamaMLP"),
    "MistralDecoderLayer": DecoderParts("MistralRMSNorm", "MistralAttention", "MistralMLP", window="config"),
    "Qwen2DecoderLayer": DecoderParts("Qwen2RMSNorm", "Qwen2Attention", "Qwen2MLP", window="attention"),
    "Qwen3DecoderLayer": DecoderParts(
        "Qwen3RMSNorm", "Qwen3Attention", "Qwen3MLP", head_norms=True, window="attention"
    ),
}
