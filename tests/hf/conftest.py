"""Tiny random models on disk, and packed checkpoints written without the streaming engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from llmquant.algorithms.rounding import rtn
from llmquant.formats.compressed_tensors.codec import encode
from llmquant.formats.compressed_tensors.config import quantization_config
from llmquant.hf import register
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme
from llmquant.statistics.base import LayerStatistics

TOKENS = torch.arange(2, 26).reshape(2, 12)


@pytest.fixture(autouse=True, scope="session")
def _registered() -> None:
    register()


def _llama(**changes: Any) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, **changes,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _qwen3() -> PreTrainedModel:
    config = Qwen3Config(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def _gemma3() -> PreTrainedModel:
    """Its embedding multiplies the rows; tied."""
    config = Gemma3TextConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, sliding_window=8, query_pre_attn_scalar=16,
    )  # fmt: skip
    return Gemma3ForCausalLM(config)


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64))


def _qwen3_moe() -> PreTrainedModel:
    config = Qwen3MoeConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=64,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config)


MODELS: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "llama-bias": lambda: _llama(attention_bias=True, mlp_bias=True),
    "qwen3-tied": _qwen3,
    "gemma3-tied": _gemma3,
    "gpt2": _gpt2,
    "qwen3-moe": _qwen3_moe,
}


@pytest.fixture(scope="session")
def dense_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a dense bfloat16 checkpoint, by the name of its model."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            torch.manual_seed(7)
            model = MODELS[name]().to(torch.bfloat16)
            for parameter in model.parameters():  # biases would be zero
                torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim == 1 else None
            made[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(made[name])
        return made[name]

    return folder


def conv1d_names(model: PreTrainedModel) -> set[str]:
    return {name for name, module in model.named_modules() if type(module).__name__ == "Conv1D"}


def schemes_in_blocks(model: PreTrainedModel, scheme: str | Callable[[str], str]) -> dict[str, Scheme]:
    """A scheme for every linear layer but the head."""
    names = conv1d_names(model) | {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    pick = scheme if callable(scheme) else lambda _: scheme
    return {name: Scheme.parse(pick(name)) for name in sorted(names - {"lm_head"})}


def round_to_nearest(weight: Tensor, scheme: Scheme) -> QuantizedTensor:
    return rtn.quantize(weight, LayerStatistics(), scheme, rtn.Options(), scale_dtype=weight.dtype).quantized


def write_packed(dense: Path, out: Path, schemes: Mapping[str, Scheme]) -> Any:
    """Write a packed checkpoint, and return the dense model that it must equal bit for bit."""
    shutil.copytree(dense, out, dirs_exist_ok=True)
    fake = AutoModelForCausalLM.from_pretrained(dense, dtype="auto")
    turned, linears = conv1d_names(fake), {n for n, m in fake.named_modules() if type(m) is torch.nn.Linear}
    tensors = load_file(dense / "model.safetensors")
    for name, scheme in schemes.items():
        weight = tensors.pop(f"{name}.weight")
        quantized = round_to_nearest(weight.T if name in turned else weight, scheme)
        tensors |= encode(name, quantized, scheme)
        dequantized = quantized.dequantize()
        fake.get_submodule(name).weight.data = dequantized.T.contiguous() if name in turned else dequantized
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    tables = {n for n, m in fake.named_modules() if isinstance(m, torch.nn.Embedding)} & set(schemes)
    kept = sorted(linears - set(schemes) - ({"lm_head"} if tables and fake.config.tie_word_embeddings else set()))
    config["quantization_config"] = quantization_config(schemes, kept, embeddings=bool(tables))
    (out / "config.json").write_text(json.dumps(config))
    return fake


def edit_quantization(folder: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits
