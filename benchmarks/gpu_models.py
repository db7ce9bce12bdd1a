"""Llamas of random weights for decode_gpu.py, made on the device one matrix at a time.

A dense model and its quantized ones come from the same numbers: each weight is drawn anew from its name, and rounded by
llmquant where a scheme asks for it. So 16-bit weights of a quantized model exist one at a time, and never on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from llmquant.hf.place import finish
from llmquant.hf.ties import replace
from llmquant.nn.accuracy import Accuracy
from llmquant.nn.linear import PackedLinear
from llmquant.numerics.grid import choose_grid, round_to_grid
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme

_COMMON: dict[str, Any] = {
    "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "tie_word_embeddings": False,
}  # fmt: skip
#: Llama-3.1-8B; Llama-3.2-1B with a head of its own; and one that the interpreter finishes.
SHAPES: dict[str, dict[str, Any]] = {
    "8b": _COMMON | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "1b": _COMMON | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "tiny": _COMMON | {
        "vocab_size": 256, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip
DENSE = "dense"
_STD = 0.02  # of the weights, as transformers initializes a Llama


@dataclass(frozen=True)
class Kind:
    """A model by its schemes.

    Attributes:
        name: as the command line has it: "dense", "int4-g128", or "int4-g128/int8" with the scheme of the head.
        body: scheme of the linear layers in the blocks.
        head: scheme of the head.
    """

    name: str
    body: Scheme
    head: Scheme

    @classmethod
    def parse(cls, name: str) -> Kind:
        """Read a name.

        Raises:
            ValueError: if a scheme is none of ours, or quantizes activations.
        """
        body, _, head = ("keep" if name == DENSE else name).partition("/")
        kind = cls(name, Scheme.parse(body), Scheme.parse(head or "keep"))
        if kind.body.activations or kind.head.activations:
            raise ValueError(f"{name}: this benchmark is of integer weights with 16-bit activations")
        return kind

    @property
    def accuracies(self) -> list[Accuracy | None]:
        """In which it can compute; only 4-bit words have both, and a dense model has none."""
        if self.body.is_keep and self.head.is_keep:
            return [None]
        return ["exact", "fast"] if min(self.body.bits, self.head.bits) <= 4 else ["exact"]

    def scheme_of(self, module: str) -> Scheme:
        """The scheme of a linear layer."""
        return self.head if module == "lm_head" else self.body


def build(kind: Kind, shape: dict[str, Any], dtype: torch.dtype, device: torch.device) -> LlamaForCausalLM:
    """Make a model, ready to run: prepared for the kernels and fused, as after loading.

    Args:
        kind: which layers hold integers.
        shape: of the model, from `SHAPES`.
        dtype: of scales, norms, embeddings and activations.
        device: where all of it lies.

    Raises:
        RuntimeError: if the device is out of memory.
    """
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(LlamaConfig(**shape), dtype=dtype)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            _place_linear(model, name, module, kind.scheme_of(name), dtype, device)
        elif isinstance(module, nn.Embedding):
            module.weight = _frozen(draw(name, module.weight.shape, dtype, device))
        elif (weight := module._parameters.get("weight")) is not None:
            module.weight = _frozen(torch.ones(weight.shape, dtype=dtype, device=device))
    # Its buffer is computed, not drawn.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    finish(model)
    return model.eval()


def draw(name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weight of that name: normal, the same at every call on one kind of device."""
    generator = torch.Generator(device).manual_seed(crc32(name.encode()))
    return torch.empty(shape, dtype=dtype, device=device).normal_(0, _STD, generator=generator)


def _place_linear(
    model: nn.Module, name: str, module: nn.Linear, scheme: Scheme, dtype: torch.dtype, device: torch.device
) -> None:
    weight = draw(name, module.weight.shape, dtype, device)
    if scheme.is_keep:
        module.weight = _frozen(weight)
        return
    grid = choose_grid(weight, scheme, scale_dtype=dtype)
    quantized = QuantizedTensor(round_to_grid(weight, grid, scheme), grid.scales, grid.zeros)
    layer = PackedLinear.from_quantized(quantized, scheme)
    del weight, quantized, grid
    layer.prepare()  # frees the checkpoint's tensors before the next layer is drawn
    replace(model, name, layer)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
