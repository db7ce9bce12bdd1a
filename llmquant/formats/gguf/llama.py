"""Llama in GGUF: names of tensors, hyperparameters, and the order of the rows of queries and keys.

llama.cpp rotates neighbouring rows of a head, transformers the two halves, so the rows of q_proj and k_proj change
places: exact, and the same for weights, scales and biases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from llmquant.errors import PlanError
from llmquant.formats.gguf.file import Value

ARCHITECTURE = "LlamaForCausalLM"
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_IN_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_KEY = re.compile(r"(?:model\.layers\.(?P<block>\d+)\.)?(?P<module>.+)\.(?P<leaf>weight|bias)")


def named(key: str) -> str:
    """What GGUF calls a tensor of the checkpoint.

    Raises:
        PlanError: if it has no place there.
    """
    match = _KEY.fullmatch(key)
    stem = None
    if match and match["block"] is None:
        stem = _OUTSIDE.get(match["module"])
    elif match and match["module"] in _IN_BLOCK:
        stem = f"blk.{match['block']}.{_IN_BLOCK[match['module']]}"
    if match is None or stem is None:
        raise PlanError(f"{key} has no place in a GGUF file of a llama; `format: compressed-tensors` stores it")
    return f"{stem}.{match['leaf']}"


def turned_heads(name: str, heads: int, key_heads: int) -> int | None:
    """The number of heads whose rows change places in the tensor `name` of the file; None for all but q and k."""
    return {"attn_q": heads, "attn_k": key_heads}.get(name.split(".")[-2])


def turn(rows: Shaped[Tensor, "rows ..."], heads: int) -> Shaped[Tensor, "rows ..."]:
    """Rows, `heads` times the size of a head, of a checkpoint in the order of the file."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def turn_back(rows: Shaped[Tensor, "rows ..."], heads: int) -> Shaped[Tensor, "rows ..."]:
    """Rows of the file in the order of the checkpoint."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def obstacles(config: Mapping[str, Any]) -> Iterator[str]:
    """Why a model cannot be written, by its config, with all defaults of transformers."""
    rope = config.get("rope_parameters") or {}
    if config.get("hidden_act") != "silu":
        yield f"GGUF's llama computes with SiLU, this model with {config.get('hidden_act')}"
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield f"positions are scaled ({rope}), which is not written to GGUF yet"


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Value]:
    """The metadata that llama.cpp computes by, of a config with all defaults and without `obstacles`."""
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    numbers: dict[str, Value] = {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": head_size,
        "rope.freq_base": float((config.get("rope_parameters") or {}).get("rope_theta", 10000.0)),
    }
    return {"general.architecture": "llama", "general.type": "model"} | {f"llama.{k}": v for k, v in numbers.items()}
