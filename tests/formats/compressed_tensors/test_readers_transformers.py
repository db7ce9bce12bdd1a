"""What the profile says about plain transformers is what plain transformers does: a real load, without llmquant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmquant.formats.compressed_tensors.codec import encode
from llmquant.formats.compressed_tensors.config import quantization_config
from llmquant.formats.compressed_tensors.readers import TRANSFORMERS, readers
from llmquant.formats.safetensors_file import write_json_atomic, write_shard
from llmquant.models.inventory import Inventory, ModuleInfo
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.recipe.load import load_recipe
from llmquant.recipe.plan import Plan
from llmquant.spec import Scheme
from tests.recipe.plans import plan_row

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
SHAPES = dict.fromkeys((f"self_attn.{letter}_proj" for letter in "qkvo"), (64, 64))
SHAPES |= {"mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)}
LINEARS = {f"model.layers.0.{part}": shape for part, shape in SHAPES.items()}
UNIFORM = ["int2-g32", "int3-g32", "int3-asym", "int4", "int4-g32-asym", "int8-g32", "int8-tensor-asym", "w8a8-dynamic"]
MIXED = {
    "mixed": ("int4-g32", "int8"),
    "mixed-asym": ("int4-g32-asym", "int8"),
    "mixed-tensor-asym": ("int4-g32", "int8-tensor-asym"),
    "mixed-w8a8": ("int3-g32", "w8a8-dynamic"),
    "partly-kept": ("int4-g32", "keep"),
}
# The scheme of the embedding, which is tied, and that of everything else.
EMBEDDED = {
    f"embedding-{e}-{rest}": (e, rest) for e, rest in (("int8", "int8"), ("int4-g32-asym",) * 2, ("int8", "int4"))
}
CASES = {name: (name, name) for name in UNIFORM} | MIXED

CLIENT = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
assert "llmquant" not in sys.modules
found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        model = AutoModelForCausalLM.from_pretrained(folder)
        model(torch.arange(8)[None])
        wanted = load_file(folder / "dense")
        found[folder.name] = all(torch.equal(model.get_submodule(name).weight, wanted[name]) for name in wanted)
        found[folder.name] &= torch.equal(model.lm_head.weight, wanted["model.embed_tokens"])
    except (AttributeError, RuntimeError) as error:
        found[folder.name] = False
print(json.dumps(found))
"""


def make(folder: Path, most: str, down: str, embedding: str = "keep") -> bool:
    """Write a small quantized model with its dense weights beside it; the profile's word on it."""
    folder.mkdir()
    rows, schemes, state, dense = [], {}, other_weights(), {}
    for name, shape in {"model.embed_tokens": (32, 64), **LINEARS}.items():
        kind = "embedding" if "embed" in name else "linear"
        scheme = Scheme.parse(embedding if kind == "embedding" else down if "down" in name else most)
        rows.append(plan_row(ModuleInfo(name, kind, shape, 1), scheme))
        state[f"{name}.weight"] = dense[name] = torch.randn(shape).bfloat16()
        if scheme.is_keep:
            continue
        del state[f"{name}.weight"]
        groups = scheme.scale_shape(*shape)
        low, high = scheme.code_min, scheme.code_max + 1
        zeros = None if scheme.symmetric else torch.randint(low, high, groups).to(torch.int8)
        codes = torch.randint(low, high, shape).to(torch.int8)
        quantized = QuantizedTensor(codes, (torch.rand(groups) / 100 + 0.001).bfloat16(), zeros)
        state |= encode(name, quantized, scheme)
        schemes[name], dense[name] = scheme, quantized.dequantize()
    kept = [row.module.name for row in rows if row.scheme.is_keep and row.module.kind == "linear"]
    packed = embedding != "keep"
    stored = quantization_config(schemes, kept if packed else ["lm_head", *kept], embeddings=packed)
    config = CONFIG | {"quantization_config": stored}
    write_json_atomic(folder / "config.json", config)
    write_shard(folder / "model.safetensors", state)
    write_shard(folder / "dense", dense)
    inventory = Inventory("LlamaForCausalLM", "llama", torch.bfloat16, tuple(row.module for row in rows), 1, (32,))
    recipe = load_recipe({"version": 1, "rules": [{"match": "linear", "scheme": "int8"}]})
    return readers(Plan(recipe, inventory, tuple(rows)))[TRANSFORMERS].ok


def other_weights() -> dict[str, Tensor]:
    norms = ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm")
    return {f"{name}.weight": torch.ones(64).bfloat16() for name in norms}


@pytest.mark.slow
def test_profile_is_right_about_transformers(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    said = {name: make(tmp_path / name, *schemes) for name, schemes in CASES.items()}
    said |= {name: make(tmp_path / name, rest, rest, embedding) for name, (embedding, rest) in EMBEDDED.items()}
    command = [sys.executable, "-c", CLIENT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == said
    assert [name for name, ok in said.items() if not ok] == ["mixed-asym", "embedding-int8-int4"]
