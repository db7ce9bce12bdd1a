"""Llamas of random weights for decode.py, made on the device one matrix at a time.

A dense model and its quantized ones come from the same numbers: each weight is drawn anew from its name, and rounded by
llmquant where a scheme asks for it. So 16-bit weights of a quantized model exist one at a time, and never on the host.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from llmquant.hf.place import finish
from llmquant.hf.ties import replace
from llmquant.nn.linear import PackedLinear
from llmquant.numerics.grid import choose_grid, round_to_grid
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

_LLAMA3: dict[str, Any] = {
    "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "tie_word_embeddings": False,
}  # fmt: skip
_SMALL = {"vocab_size": 32000, "max_position_embeddings": 1024, "hidden_size": 2048, "intermediate_size": 5632}
_TINY = {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4}
#: Llama-3.1-8B; Llama-3.2-1B with a head of its own; 853 M weights for a CPU; and one that the interpreter finishes.
SHAPES: dict[str, dict[str, Any]] = {
    "8b": _LLAMA3 | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "1b": _LLAMA3 | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "small": _LLAMA3 | _SMALL | {"num_hidden_layers": 16},
    "tiny": _LLAMA3 | _TINY | {"num_key_value_heads": 2, "num_hidden_layers": 1},
}
_STD = 0.02  # of the weights, as transformers initializes a Llama


def build(
    shape: dict[str, Any], body: Scheme, head: Scheme, dtype: torch.dtype, device: torch.device
) -> LlamaForCausalLM:
    """Make a model of one of `SHAPES`, ready to run: prepared for the kernels and fused, as after loading.

    `body` is the scheme of the blocks, `head` that of the head, `dtype` that of scales, norms, embeddings, activations.

    Raises:
        ValueError: if a scheme quantizes activations.
    """
    if body.activations or head.activations:
        raise ValueError(f"{body.name}: random models have integer weights with float activations")
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(LlamaConfig(**shape), dtype=dtype)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            weight = draw(name, module.weight.shape, dtype, device)
            _place_linear(model, name, module, weight, head if name == "lm_head" else body)
        elif isinstance(module, nn.Embedding):
            module.weight = _frozen(draw(name, module.weight.shape, dtype, device))
        elif (norm := module._parameters.get("weight")) is not None:
            module.weight = _frozen(torch.ones(norm.shape, dtype=dtype, device=device))
    # Its buffer is computed, not drawn.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    finish(model)
    return model.eval()


def draw(name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weight of that name: normal, the same at every call on one kind of device."""
    generator = torch.Generator(device).manual_seed(crc32(name.encode()))
    return torch.empty(shape, dtype=dtype, device=device).normal_(0, _STD, generator=generator)


def _place_linear(model: nn.Module, name: str, module: nn.Linear, weight: Tensor, scheme: Scheme) -> None:
    if scheme.is_keep:
        module.weight = _frozen(weight)
        return
    grid = choose_grid(weight, scheme, scale_dtype=weight.dtype)
    quantized = QuantizedTensor(round_to_grid(weight, grid, scheme), grid.scales, grid.zeros)
    layer = PackedLinear.from_quantized(quantized, scheme)
    layer.prepare()  # frees the checkpoint's tensors before the next layer is drawn
    replace(model, name, layer)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
