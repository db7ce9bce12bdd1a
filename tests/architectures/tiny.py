"""Tiny models of every causal architecture that the installed transformers has: its own config classes, shrunken.

Sizes are multiples of 32, so that groups of 32 fit. `SPECIAL` holds what single architectures need besides `COMMON`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 256

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    # widths, under the names that the families give them
    "hidden_size": 64, "n_embd": 64, "d_model": 64, "intermediate_size": 128, "ffn_dim": 128, "decoder_ffn_dim": 128,
    "encoder_ffn_dim": 128, "n_inner": 128, "ffn_hidden_size": 128, "d_inner": 128, "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64, "shared_intermediate_size": 64,
    # depth
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2, "encoder_layers": 2,
    "max_position_embeddings": 128, "n_positions": 128, "n_ctx": 128, "sliding_window": 32,
    # attention
    "num_attention_heads": 2, "n_head": 2, "n_heads": 2, "num_heads": 2, "decoder_attention_heads": 2,
    "encoder_attention_heads": 2, "num_key_value_heads": 2, "n_kv_heads": 2, "head_dim": 32, "rotary_dim": 16,
    "kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
    # linear attention and state spaces
    "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_expand": 2, "mamba_num_heads": 4,
    "mamba_head_dim": 32, "ssm_state_size": 16, "state_size": 16, "time_step_rank": 32,
}  # fmt: skip

_SLIDING_AND_FULL = ["sliding_attention", "full_attention"]
_PER_LAYER_INPUTS = {
    "layer_types": _SLIDING_AND_FULL, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": VOCABULARY,
}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "codegen": {"num_attention_heads": 4, "n_head": 4, "hidden_size": 128, "n_embd": 128},
    "cpmant": {"dim_ff": 128},
    "ctrl": {"dff": 128},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 2, "moe_top_k": 1},
    },
    "dots1": {"n_shared_experts": 1},
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {
        **_PER_LAYER_INPUTS, "intermediate_size": [128, 128], "laurel_rank": 32,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": {**_PER_LAYER_INPUTS, "global_head_dim": 64, "num_key_value_heads": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "n_groups": 1},
    "nemotron_h": {"n_groups": 1, "hybrid_override_pattern": "M*", "num_hidden_layers": 2},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1, "num_hidden_layers": 4, "num_key_value_heads": 1},
}  # fmt: skip


def model_types() -> list[str]:
    """Every model type that `AutoModelForCausalLM` builds."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """The config of a tiny model; a text part inside it is shrunken too."""
    kind = CONFIG_MAPPING[model_type]
    default = kind()
    parts = {name: getattr(default, name, None) for name in ("text_config", "decoder")}
    settings: dict[str, Any] = {
        name: {"model_type": part.model_type, **_shrunken(part)}
        for name, part in parts.items()
        if isinstance(part, PretrainedConfig)
    }
    settings = (settings or _shrunken(default)) | SPECIAL.get(model_type, {}) | changes
    return kind(**{name: value for name, value in settings.items() if value is not None})


def tiny_model(model_type: str, *, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> PreTrainedModel:
    """A model with random weights that are large enough to tell modules apart, in evaluation mode."""
    config = tiny_config(model_type, **changes)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)  # `.to` would round buffers too
    for parameter in model.parameters():
        # Of the rest only what is all 0, as a factor of 0 would hide whatever is behind it.
        if parameter.is_floating_point() and (parameter.ndim > 1 or not parameter.any()):
            torch.nn.init.normal_(parameter.data, 0, 0.1)
    return model.eval()


def _shrunken(config: PretrainedConfig) -> dict[str, Any]:
    # Some attributes differ from layer to layer and say so when they are asked for.
    return {name: value for name, value in COMMON.items() if _has(config, name)}


def _has(config: PretrainedConfig, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # noqa: BLE001  # of any kind: it is there, but has no single value
        return True
