"""Recipes and tiny models whose results are compared byte for byte, between commits and with the hashes in rtn.json.

Weights are integers of torch's generator times a power of two, so that they are the same on every processor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import llmquant
from llmquant.recipe.load import load_recipe
from tests.architectures.tiny import tiny_model
from tests.engine.conftest import byte_tokenizer

# What no preset does: 2 bits, one scale for a tensor, asymmetric embeddings of another group size.
_ODD_SCHEMES = {
    "version": 1, "name": "odd-schemes",
    "rules": [
        {"match": "linear", "scheme": "int2-g32-asym"}, {"match": "attention.o", "scheme": "int4-tensor"},
        {"match": "embedding", "scheme": "int4-g64-asym"}, {"match": "last_block", "scheme": "int3"},
    ],
}  # fmt: skip
_MIXED_GPTQ = {
    "version": 1, "name": "mixed-gptq",
    "rules": [
        {"match": "linear", "scheme": "int4-g32-asym"}, {"match": "mlp.down", "scheme": "int8"},
        {"match": "attention.o", "scheme": "w8a8-dynamic"},
    ],
    "rounding": {"method": "gptq", "grid": "mse"}, "calibration": {"dataset": "builtin:python"},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One model and one recipe, with changes of the model's config."""

    model_type: str
    recipe: str | dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Such as "llama int4-g32"."""
        recipe = self.recipe if isinstance(self.recipe, str) else self.recipe["name"]
        return " ".join([self.model_type, *sorted(self.changes), recipe])


_TIED = {"tie_word_embeddings": True}
_WIDE = {"hidden_size": 128}
RTN = [
    Case("llama", "int4-g32"),
    Case("llama", "int4-g128-asym", _WIDE),
    Case("llama", "int8"),
    Case("llama", "int3-g32"),
    Case("llama", "mixed-int4-int8", {"num_hidden_layers": 4}),
    Case("llama", "mixed-portable", _WIDE | {"num_hidden_layers": 4}),
    Case("llama", "w8a8-dynamic"),
    Case("llama", "int4-g32-full", _TIED),
    Case("llama", _ODD_SCHEMES),
    Case("llama", _ODD_SCHEMES, _TIED),
    Case("gpt2", "int4-g32"),
    Case("gpt2", "int8-full"),
    Case("mixtral", "int4-g32"),
    Case("gemma3_text", "int4-g32-full"),
    Case("falcon", "int8-g128", _WIDE),
]
GPTQ = [
    Case("llama", "int4-g32-gptq"),
    Case("llama", "int3-g32-gptq", _TIED),
    Case("llama", "int4-g128-gptq", _WIDE),
    Case("gpt2", "int4-g32-gptq"),
    Case("mixtral", "int4-g32-gptq"),
    Case("qwen3", _MIXED_GPTQ),
]


def golden_model(case: Case) -> PreTrainedModel:
    """The model of a case in bfloat16."""
    # One word for each of the tokenizer's 257.
    changes: dict[str, Any] = {"vocab_size": 288, "vocab_size_per_layer_input": 288} | case.changes
    model = tiny_model(case.model_type, **changes)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            drawn = torch.randint(-(2**15), 2**15, parameter.shape, generator=generator)
            # A power of 3 thins out the large values, as in trained weights; float64 has each exactly.
            scaled = (drawn.double() / 2**15) ** 3 * 2.0 ** -round(math.log2(parameter.shape[-1]) / 2)
            parameter.data.copy_(scaled)
        elif parameter.is_floating_point():
            parameter.data.fill_(1.0 if parameter.data.mean() > 0.5 else 0.0)
    return model


def hashes(case: Case, work: Path) -> Iterator[tuple[str, str]]:
    """Name and SHA-256 of every safetensors file of the result."""
    golden_model(case).save_pretrained(work / "model", max_shard_size="150KB")
    byte_tokenizer().save_pretrained(work / "model")
    recipe = load_recipe(case.recipe).model_copy(update={"portable": False})
    if recipe.calibration is not None:
        few = recipe.calibration.model_copy(update={"samples": 8, "length": 64})
        recipe = recipe.model_copy(update={"calibration": few})
    llmquant.quantize(work / "model", recipe, work / "out")
    for path in sorted((work / "out").glob("*.safetensors")):
        yield path.name, hashlib.sha256(path.read_bytes()).hexdigest()
