"""What the profile says about plain transformers is what plain transformers does: a real load, without llmquant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmquant.formats.compressed_tensors import encode, quantization_config
from llmquant.formats.profile import TRANSFORMERS, readers
from llmquant.formats.shard import write_json_atomic, write_shard
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.recipe.inventory import Inventory, ModuleInfo
from llmquant.recipe.load import load_recipe
from llmquant.recipe.plan import Plan, PlanRow
from llmquant.spec import Scheme

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
SQUARE = dict.fromkeys((f"self_attn.{letter}_proj" for letter in "qkvo"), (64, 64))
LINEARS = SQUARE | {"mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)}
UNIFORM = ["int2-g32", "int3-g32", "int3-asym", "int4", "int4-g32-asym", "int8-g32", "int8-tensor-asym", "w8a8-dynamic"]
MIXED = {
    "mixed": ("int4-g32", "int8"),
    "mixed-asym": ("int4-g32-asym", "int8"),
    "mixed-tensor-asym": ("int4-g32", "int8-tensor-asym"),
    "mixed-w8a8": ("int3-g32", "w8a8-dynamic"),
    "partly-kept": ("int4-g32", "keep"),
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
    except RuntimeError as error:
        found[folder.name] = False
print(json.dumps(found))
"""


def make(folder: Path, most: str, down: str) -> bool:
    """Write a small quantized model with its dense weights beside it; the profile's word on it."""
    rows, schemes, state, dense = [], {}, other_weights(), {}
    for part, shape in LINEARS.items():
        name, scheme = f"model.layers.0.{part}", Scheme.parse(down if "down" in part else most)
        rows.append(PlanRow(ModuleInfo(name, "linear", shape, 1), scheme, "rule", None, 0, 0))
        if scheme.is_keep:
            state[f"{name}.weight"] = dense[name] = torch.randn(shape).bfloat16()
            continue
        groups = scheme.scale_shape(*shape)
        low, high = scheme.code_min, scheme.code_max + 1
        zeros = None if scheme.symmetric else torch.randint(low, high, groups).to(torch.int8)
        codes = torch.randint(low, high, shape).to(torch.int8)
        quantized = QuantizedTensor(codes, (torch.rand(groups) / 100 + 0.001).bfloat16(), zeros)
        state |= encode(name, quantized, scheme)
        schemes[name], dense[name] = scheme, quantized.dequantize()
    folder.mkdir()
    kept = [row.module.name for row in rows if row.scheme.is_keep]
    config = CONFIG | {"quantization_config": quantization_config(schemes, ["lm_head", *kept])}
    write_json_atomic(folder / "config.json", config)
    write_shard(folder / "model.safetensors", state)
    write_shard(folder / "dense", dense)
    inventory = Inventory("LlamaForCausalLM", "llama", torch.bfloat16, tuple(row.module for row in rows), 1, 32)
    recipe = load_recipe({"version": 1, "rules": [{"match": "linear", "scheme": "int8"}]})
    return readers(Plan(recipe, inventory, tuple(rows)))[TRANSFORMERS].ok


def other_weights() -> dict[str, Tensor]:
    norms = ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm")
    weights = {f"{name}.weight": torch.ones(64).bfloat16() for name in norms}
    return weights | {"model.embed_tokens.weight": torch.randn(32, 64).bfloat16()}


@pytest.mark.slow
def test_profile_is_right_about_transformers(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    said = {name: make(tmp_path / name, *schemes) for name, schemes in CASES.items()}
    command = [sys.executable, "-c", CLIENT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == said
    assert [name for name, ok in said.items() if not ok] == ["mixed-asym"]
