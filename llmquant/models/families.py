"""What we know of architectures, as data: the words by which they name their parts, and a row for each known family.

The words serve every model: a new family usually needs one more of them and no code. Names are compared per component
of the dotted module name. The rows say more, of the decoder layers of transformers that they name: which norm a linear
layer reads, what writes to the residual stream, and whether the layer can be fused. A family without a row is
quantized and run like any other; what needs a row says that there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv"),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), "qkv_a"),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), "gate_up"),
}


@dataclass(frozen=True, slots=True)
class Fusing:
    """The parts of a decoder layer that can be fused: one that computes

        x = x + o(attention(rope(norm(q(input_norm(x))), norm(k(input_norm(x)))), v(input_norm(x))))
        x = x + down(silu(gate(mlp_norm(x))) * up(mlp_norm(x)))

    with `norm` optional. Anything else (scaled residuals, norms after a part, other activations) cannot.

    Attributes:
        head_norms: whether queries and keys are normalized per head, by `q_norm` and `k_norm`.
        window: who holds `sliding_window`: "attention", "config" or nobody.
    """

    norm: str
    attention: str
    mlp: str
    head_norms: bool = False
    window: str | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of decoder layer. All names are those of modules inside it.

    Attributes:
        reads: groups of linear layers that read one norm, and the norms that may be that one: the first that a layer
            has. Nothing else reads this norm, other groups with the same norm excepted.
        writes: the linear layers whose outputs are added to the residual stream, with or without a norm in between.
        offset: what the norms add to their weight before they multiply with it.
        holds_if: an attribute of the layer and the value for which `reads` is true; for others nothing is known.
        fusing: whether and how it can be fused.
    """

    reads: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    writes: tuple[str, ...]
    offset: float = 0.0
    holds_if: tuple[str, Any] | None = None
    fusing: Fusing | None = None


@dataclass(frozen=True, slots=True)
class NormReaders:
    """A norm of a decoder layer and all linear layers that read it, by their names inside it."""

    norm: str
    readers: tuple[str, ...]
    offset: float


def _fusing(name: str, head_norms: bool = False, window: str | None = None) -> Fusing:
    """Of a family whose classes are all named alike."""
    return Fusing(f"{name}RMSNorm", f"{name}Attention", f"{name}MLP", head_norms, window)


def _names(parent: str, *leaves: str) -> tuple[str, ...]:
    return tuple(f"{parent}.{leaf}" for leaf in leaves)


_QKV = _names("self_attn", "q_proj", "k_proj", "v_proj")
_GATE_UP = _names("mlp", "gate_proj", "up_proj")
_FIRST, _SECOND = ("input_layernorm",), ("post_attention_layernorm",)
_OUT = ("self_attn.o_proj", "mlp.down_proj")
_LLAMA = ((_QKV, _FIRST), (_GATE_UP, _SECOND))
_UP_ONLY = ((_QKV, _FIRST), (("mlp.up_proj",), _SECOND))
_GLM = ((_QKV, _FIRST), (("mlp.gate_up_proj",), _SECOND))
_GEMMA2 = ((_QKV, _FIRST), (_GATE_UP, ("pre_feedforward_layernorm",)))
_PARALLEL = ((_QKV, _FIRST), (_GATE_UP, (*_SECOND, *_FIRST)))
_BLOOM = ((("self_attention.query_key_value",), _FIRST), (("mlp.dense_h_to_4h",), _SECOND))
_BLOOM_OUT = ("self_attention.dense", "mlp.dense_4h_to_h")

# By the class of the decoder layer in transformers.
FAMILIES: Mapping[str, Family] = {
    "ApertusDecoderLayer": Family(
        ((_QKV, ("attention_layernorm",)), (("mlp.up_proj",), ("feedforward_layernorm",))), _OUT
    ),
    "ArceeDecoderLayer": Family(_UP_ONLY, _OUT),
    "BloomBlock": Family(_BLOOM, _BLOOM_OUT, holds_if=("apply_residual_connection_post_layernorm", False)),
    "CohereDecoderLayer": Family(_PARALLEL, _OUT),
    "Cohere2DecoderLayer": Family(_PARALLEL, _OUT),
    "Ernie4_5DecoderLayer": Family(_LLAMA, _OUT),
    "Exaone4DecoderLayer": Family((), _OUT),  # norms stand behind attention and MLP
    "FalconDecoderLayer": Family(
        (
            (("self_attention.query_key_value",), ("ln_attn", *_FIRST)),
            (("mlp.dense_h_to_4h",), ("ln_mlp", *_SECOND, *_FIRST)),
        ),
        _BLOOM_OUT,
    ),
    "GemmaDecoderLayer": Family(_LLAMA, _OUT, offset=1.0),
    "Gemma2DecoderLayer": Family(_GEMMA2, _OUT, offset=1.0),
    "Gemma3DecoderLayer": Family(_GEMMA2, _OUT, offset=1.0),
    "GlmDecoderLayer": Family(_GLM, _OUT),
    "Glm4DecoderLayer": Family(_GLM, _OUT),
    "GPT2Block": Family(((("attn.c_attn",), ("ln_1",)), (("mlp.c_fc",), ("ln_2",))), ("attn.c_proj", "mlp.c_proj")),
    "GPTJBlock": Family(
        ((_names("attn", "q_proj", "k_proj", "v_proj"), ("ln_1",)), (("mlp.fc_in",), ("ln_1",))),
        ("attn.out_proj", "mlp.fc_out"),
    ),
    "GPTNeoXLayer": Family(
        ((("attention.query_key_value",), _FIRST), (("mlp.dense_h_to_4h",), _SECOND)),
        ("attention.dense", "mlp.dense_4h_to_h"),
    ),
    "GraniteDecoderLayer": Family(_LLAMA, _OUT),
    "HeliumDecoderLayer": Family(_LLAMA, _OUT),
    "HunYuanDenseV1DecoderLayer": Family(_LLAMA, _OUT),
    "LlamaDecoderLayer": Family(_LLAMA, _OUT, fusing=_fusing("Llama")),
    "Ministral3DecoderLayer": Family(_LLAMA, _OUT),
    "MistralDecoderLayer": Family(_LLAMA, _OUT, fusing=_fusing("Mistral", window="config")),
    "MptBlock": Family(
        ((("attn.Wqkv",), ("norm_1",)), (("ffn.up_proj",), ("norm_2",))), ("attn.out_proj", "ffn.down_proj")
    ),
    "NemotronDecoderLayer": Family(_UP_ONLY, _OUT, offset=1.0),
    "OlmoDecoderLayer": Family(_LLAMA, _OUT),  # its norms have no weight
    "Olmo2DecoderLayer": Family((), _OUT),  # norms stand behind attention and MLP
    "OPTDecoderLayer": Family(
        ((_QKV, ("self_attn_layer_norm",)), (("fc1",), ("final_layer_norm",))),
        ("self_attn.out_proj", "fc2"),
        holds_if=("do_layer_norm_before", True),
    ),
    "PersimmonDecoderLayer": Family(
        ((("self_attn.query_key_value",), _FIRST), (("mlp.dense_h_to_4h",), _SECOND)),
        ("self_attn.dense", "mlp.dense_4h_to_h"),
    ),
    "PhiDecoderLayer": Family(((_QKV, _FIRST), (("mlp.fc1",), _FIRST)), ("self_attn.dense", "mlp.fc2")),
    "Phi3DecoderLayer": Family(((("self_attn.qkv_proj",), _FIRST), (("mlp.gate_up_proj",), _SECOND)), _OUT),
    "Qwen2DecoderLayer": Family(_LLAMA, _OUT, fusing=_fusing("Qwen2", window="attention")),
    "Qwen3DecoderLayer": Family(_LLAMA, _OUT, fusing=_fusing("Qwen3", head_norms=True, window="attention")),
    "SeedOssDecoderLayer": Family(_LLAMA, _OUT),
    "SmolLM3DecoderLayer": Family(_LLAMA, _OUT),
    "StableLmDecoderLayer": Family(_PARALLEL, _OUT),
    "Starcoder2DecoderLayer": Family(((_QKV, _FIRST), (("mlp.c_fc",), _SECOND)), ("self_attn.o_proj", "mlp.c_proj")),
}


def find_family(layer: object) -> Family | None:
    """The row of a decoder layer; None where there is none."""
    kind = type(layer)  # code from a checkpoint may use the same names for something else
    return FAMILIES.get(kind.__name__) if kind.__module__.startswith("transformers.models.") else None


def norm_readers(layer: Any) -> tuple[NormReaders, ...]:
    """The norms of a decoder layer (an `nn.Module`) that have a weight, each with all linear layers that read it.

    None where the family has no row, or has norms that feed something else too.
    """
    family = find_family(layer)
    if family is None or (family.holds_if and getattr(layer, family.holds_if[0]) != family.holds_if[1]):
        return ()
    modules: dict[str, Any] = dict(layer.named_modules())
    readers: dict[str, tuple[str, ...]] = {}
    for group, candidates in family.reads:
        norm = next(name for name in candidates if name in modules)
        readers[norm] = readers.get(norm, ()) + group
    return tuple(
        NormReaders(norm, group, family.offset)
        for norm, group in readers.items()
        if getattr(modules[norm], "weight", None) is not None
    )
