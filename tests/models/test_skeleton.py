"""Skeletons and inventories of the configurations in tests/configs: nothing is missed, nothing counted twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Gemma4TextConfig, LlamaConfig

from llmquant.errors import CheckpointError, PlanError
from llmquant.formats.compressed_tensors.readers import VLLM_CPU, readers
from llmquant.models import skeleton
from llmquant.models.inventory import Inventory, ModuleInfo
from llmquant.models.skeleton import build_skeleton, decoder_blocks, load_config, take_inventory
from llmquant.models.walk import list_modules
from llmquant.recipe.load import load_recipe
from llmquant.recipe.plan import make_plan
from llmquant.recipe.summary import summarize

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

# file: (blocks, path, parameters in millions, head size, tied, kinds)
EXPECTED = {
    "deepseek-v3": (61, "model.layers", 671_026, 64, False, {"embedding", "linear", "norm", "router", "experts"}),
    "gemma3-1b-text": (26, "model.layers", 1_000, 256, True, {"embedding", "linear", "norm"}),
    "gpt-neox-20b": (44, "gpt_neox.layers", 20_555, 96, False, {"embedding", "linear", "norm"}),
    "gpt-oss-20b": (
        24,
        "model.layers",
        20_915,
        64,
        False,
        {"embedding", "linear", "norm", "router", "experts", "other"},
    ),
    "gpt2": (12, "transformer.h", 124, 64, True, {"embedding", "linear", "conv1d", "norm"}),
    "llama3-70b": (80, "model.layers", 70_554, 128, False, {"embedding", "linear", "norm"}),
    "mistral-7b": (32, "model.layers", 7_242, 128, False, {"embedding", "linear", "norm"}),
    "mixtral-8x7b": (32, "model.layers", 46_703, 128, False, {"embedding", "linear", "norm", "router", "experts"}),
    "opt-125m": (12, "model.decoder.layers", 125, 64, True, {"embedding", "linear", "norm"}),
    "opt-350m": (24, "model.decoder.layers", 331, 64, True, {"embedding", "linear", "norm"}),
    "phi-2": (32, "model.layers", 2_780, 80, False, {"embedding", "linear", "norm"}),
    "phi-3-mini": (32, "model.layers", 3_821, 96, False, {"embedding", "linear", "norm"}),
    "qwen3-0.6b": (28, "model.layers", 596, 128, True, {"embedding", "linear", "norm"}),
    "qwen3-30b-a3b": (48, "model.layers", 30_532, 128, False, {"embedding", "linear", "norm", "router", "experts"}),
}
MOE = [name for name, row in EXPECTED.items() if "experts" in row[-1]]


@cache
def taken(name: str) -> tuple[Inventory, int, str]:
    """Inventory, unique parameters and path of the blocks of a configuration."""
    model = build_skeleton(load_config(CONFIGS / f"{name}.json"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert not any(buffer.is_meta for buffer in model.buffers())
    return take_inventory(model), sum(parameter.numel() for parameter in model.parameters()), decoder_blocks(model)[0]


def find(name: str, suffix: str) -> ModuleInfo:
    """The first module of a configuration whose name ends so."""
    return next(module for module in taken(name)[0].modules if module.name.endswith(suffix))


def test_every_configuration_is_expected() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_inventory(name: str) -> None:
    inventory, parameters, path = taken(name)
    blocks, expected_path, millions, head, tied, kinds = EXPECTED[name]
    assert inventory.parameters == parameters
    assert round(parameters / 1e6) == millions
    assert (inventory.blocks, path, inventory.head_sizes) == (blocks, expected_path, (head,))
    assert {module.kind for module in inventory.modules} == kinds
    assert len({module.name for module in inventory.modules}) == len(inventory.modules)
    heads = [module for module in inventory.modules if "lm_head" in module.sets]
    assert [module.tied_to is not None for module in heads] == [tied]
    if tied:
        assert heads[0].tied_to in {module.name for module in inventory.modules if module.kind == "embedding"}
        assert heads[0].parameters == 0


@pytest.mark.parametrize("name", EXPECTED)
def test_every_linear_of_a_block_has_its_place(name: str) -> None:
    inventory = taken(name)[0]
    linear = [m for m in inventory.modules if m.kind in ("linear", "conv1d") and m.block is not None]
    assert linear
    for module in linear:
        assert "linear" in module.sets
        assert len(module.sets & {"attention.qkv", "attention.o", "mlp.gate_up", "mlp.down"}) == 1, module
        assert ("attention" in module.sets) != ("mlp" in module.sets)
        assert ("first_block" in module.sets) == (module.block == 0)
        assert ("last_block" in module.sets) == (module.block == inventory.blocks - 1)
    others = [m for m in inventory.modules if m not in linear]
    assert not any("linear" in module.sets for module in others)
    assert {m.block for m in linear} == set(range(inventory.blocks))


def test_fused_sets() -> None:
    labels = Counter(module.fused for module in taken("llama3-70b")[0].modules if module.fused)
    assert len(labels) == 160
    assert labels["model.layers.7.self_attn:qkv"] == 3
    assert labels["model.layers.7.mlp:gate_up"] == 2
    assert {m.fused for m in taken("phi-3-mini")[0].modules} == {None}  # its modules are fused already
    assert {m.fused for m in taken("gpt-neox-20b")[0].modules} == {None}
    assert find("opt-125m", "0.self_attn.k_proj").fused == "model.decoder.layers.0.self_attn:qkv"
    assert find("opt-125m", "0.fc1").fused is None
    assert find("deepseek-v3", "0.self_attn.q_a_proj").fused == "model.layers.0.self_attn:qkv_a"


def test_parts_of_other_families() -> None:
    assert find("opt-125m", "0.fc2").sets == {"linear", "mlp", "mlp.down", "first_block"}
    assert "attention.qkv" in find("gpt-neox-20b", "query_key_value").sets
    assert "attention.qkv" in find("phi-3-mini", "qkv_proj").sets
    assert "mlp.gate_up" in find("phi-3-mini", "gate_up_proj").sets
    assert find("opt-350m", "project_in").sets == frozenset()


def test_conv1d_is_turned() -> None:
    module = find("gpt2", "0.mlp.c_fc")
    assert (module.kind, module.shape, module.bias) == ("conv1d", (3072, 768), True)
    assert module.parameters == 3072 * 768 + 3072


def test_experts_and_routers_are_seen() -> None:
    for name in MOE:
        inventory = taken(name)[0]
        experts = [module for module in inventory.modules if module.kind == "experts"]
        assert len(experts) == 2 * len({module.block for module in experts})
        assert all(len(module.shape) == 3 and module.sets == {"experts"} for module in experts)
        assert {m.block for m in inventory.modules if m.kind == "router"} == {m.block for m in experts}
    transposed = find("gpt-oss-20b", "experts.gate_up_proj")
    assert transposed.bias
    assert transposed.parameters == 32 * (2880 * 5760 + 5760)
    assert "mlp.down" in find("deepseek-v3", "shared_experts.down_proj").sets


@pytest.mark.parametrize("name", EXPECTED)
def test_plan_of_every_configuration(name: str) -> None:
    inventory = taken(name)[0]
    rules = [{"match": "linear", "scheme": "int4-g32"}]
    if name == "gpt2":
        with pytest.raises(PlanError, match="portable: false"):
            make_plan(load_recipe({"version": 1, "rules": rules}), inventory)
    plan = make_plan(load_recipe({"version": 1, "rules": rules, "portable": name != "gpt2"}), inventory)
    assert {row.bits_per_weight for row in plan.quantized} == {5.0 if name == "gpt2" else 4.5}
    assert bool(plan.warnings) == (name in MOE)
    assert len(summarize(plan.rows)) <= 25


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time_mix = nn.Parameter(torch.empty(1, 1, 8, device="meta"))


class _ParallelExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 16, 8, device="meta"))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = _Attention()
        self.mlp = nn.ModuleDict({"input_linear": _ParallelExperts(), "conv": nn.Conv1d(8, 8, 3, device="meta")})


def test_not_every_stack_of_matrices_is_experts() -> None:
    """Attention of XLNet, time_mix of RWKV, the probe of SigLIP, RecurrentGemma and Zamba have 3-D parameters."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([_Block()])

        def get_output_embeddings(self) -> None:
            return None

    kinds = {m.name: m.kind for m in list_modules(Model(), "layers", 1)}  # pyright: ignore[reportArgumentType]
    assert kinds == {
        "layers.0.attention": "other",
        "layers.0.mlp.input_linear.weight": "experts",
        "layers.0.mlp.conv": "other",
    }


def test_heads_whose_size_differs_by_layer() -> None:
    sizes: dict[str, Any] = {"head_dim": 32, "global_head_dim": 64}
    config = Gemma4TextConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, layer_types=["sliding_attention", "full_attention"], num_kv_shared_layers=0,
        hidden_size_per_layer_input=16, vocab_size_per_layer_input=256, **sizes,
    )  # fmt: skip
    inventory = take_inventory(build_skeleton(config))
    assert inventory.head_sizes == (32, 64)
    plan = make_plan(load_recipe("int4-g32"), inventory)
    assert "head size" not in readers(plan)[VLLM_CPU].note


@pytest.mark.parametrize("heads", [None, [2, 4]])
def test_heads_that_the_configuration_does_not_count(heads: object) -> None:
    inventory = taken("opt-125m")[0]
    config = load_config(CONFIGS / "opt-125m.json")
    model = build_skeleton(config)
    model.config.__dict__["num_attention_heads"] = heads
    assert take_inventory(model).head_sizes == ()
    assert inventory.head_sizes == (64,)


@pytest.mark.parametrize(
    ("top", "text", "wanted"),
    [
        ("bfloat16", None, torch.bfloat16),
        ("float16", "bfloat16", torch.bfloat16),
        (None, "float16", torch.float16),
        (None, None, torch.float32),
    ],
)
def test_dtype_of_a_composite_configuration(
    top: str | None, text: str | None, wanted: torch.dtype, tmp_path: Path
) -> None:
    """What transformers saves of text beside vision names the dtype once, at the top."""
    small = {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": 64, "num_key_value_heads": 1, "layer_types": ["full_attention"],
    }  # fmt: skip
    parts = {"text_config": {"model_type": "qwen3_5_text", "dtype": text, **small}}
    data = {"model_type": "qwen3_5", "dtype": top, **parts}
    (tmp_path / "config.json").write_text(json.dumps(data))
    model = build_skeleton(load_config(tmp_path))
    assert (take_inventory(model).dtype, model.dtype) == (wanted, wanted)


def test_blocks_are_those_of_the_text_model() -> None:
    class Tower(nn.Module):
        def __init__(self, blocks: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleDict({"attn": nn.Linear(2, 2)}) for _ in range(blocks))
            self.adapters = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision, self.text = Tower(7), Tower(3)

        def get_decoder(self) -> nn.Module:
            return self.text

    name, blocks = decoder_blocks(Model())  # pyright: ignore[reportArgumentType]
    assert (name, len(blocks)) == ("text.layers", 3)


def test_model_without_blocks_is_refused() -> None:
    class Flat(nn.Linear):
        def get_decoder(self) -> nn.Module:
            return self

    with pytest.raises(CheckpointError, match="Flat has no list of decoder blocks"):
        decoder_blocks(Flat(2, 2))  # pyright: ignore[reportArgumentType]


def test_load_config_from_folder_and_file(tmp_path: Path) -> None:
    text = (CONFIGS / "opt-125m.json").read_text()
    (tmp_path / "config.json").write_text(text)
    for source in (tmp_path, str(tmp_path), tmp_path / "config.json"):
        config = load_config(source)
        assert (config.model_type, config.dtype) == ("opt", torch.float16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no config.json"),
        ("{", "is not JSON"),
        ("[]", "an object was expected"),
        ('{"model_type": ["llama"]}', "cannot read the configuration"),
        ('{"model_type": "llama", "num_hidden_layers": "many"}', "cannot read the configuration"),
        ("{}", "cannot read the configuration"),
        ('{"model_type": "no_such_model"}', "cannot read the configuration"),
        ('{"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}}', "needs code that comes with"),
    ],
)
def test_bad_configuration_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    (tmp_path / "evil.py").write_text("raise SystemExit('code of a checkpoint ran')")
    with pytest.raises(CheckpointError, match=message):
        load_config(tmp_path)


def test_another_file_than_a_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json names no model_type; wanted the config.json"):
        load_config(tmp_path / "tokenizer.json")


def test_missing_path_is_refused(tmp_path: Path) -> None:
    for source in (tmp_path / "no", str(tmp_path / "no"), "./no"):
        with pytest.raises(CheckpointError, match="no such folder"):
            load_config(source)


def test_model_that_is_no_causal_language_model(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(CheckpointError, match="cannot build a causal language model of type 't5'"):
        build_skeleton(load_config(path))


# Importing the libraries costs whoever loads a Llama at all 4 to 10 s of processor time, which no plan can spare.
_PLAN_70B = """
import resource, sys, time
import accelerate, transformers.models.llama.modeling_llama
from llmquant.models.skeleton import build_skeleton, load_config, take_inventory
from llmquant.recipe.load import load_recipe
from llmquant.recipe.plan import make_plan
imported = time.process_time()
make_plan(load_recipe("mixed-int4-int8"), take_inventory(build_skeleton(load_config(sys.argv[1]))))
print(time.process_time() - imported, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_70b_is_planned_in_little_time_and_memory() -> None:
    command = [sys.executable, "-c", _PLAN_70B, str(CONFIGS / "llama3-70b.json")]
    seconds, kib = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert float(seconds) < 5  # processor time: the same on a busy machine
    assert int(kib) < 1e6


def test_a_model_of_too_many_tensors_or_too_large_tables_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    monkeypatch.setattr(skeleton, "MAX_PARAMETERS", 10)
    with pytest.raises(CheckpointError, match="more than 10 tensors"):
        skeleton.build_skeleton(config)
    monkeypatch.undo()
    config.head_dim = 10**10
    with pytest.raises(CheckpointError, match="a table of more than"):
        skeleton.build_skeleton(config)
