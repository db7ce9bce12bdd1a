"""A forward without weights shows which layers model code reads, and leaves no trace."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, MambaConfig, PreTrainedConfig, RwkvConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmquant.errors import PlanError
from llmquant.formats.compressed_tensors.readers import TRANSFORMERS, readers
from llmquant.models import obstacles
from llmquant.models.inventory import Inventory
from llmquant.models.skeleton import build_skeleton, take_inventory
from llmquant.models.trial import Trial, try_packed
from llmquant.recipe.load import load_recipe
from llmquant.recipe.plan import make_plan
from tests.architectures.tiny import tiny_config

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

CTRL: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 2, "dff": 64, "dtype": "bfloat16"}


class Block(nn.Module):
    """A block whose parts can be made to read weights."""

    def __init__(self, reads: str = "") -> None:
        super().__init__()
        self.up, self.down, self.gate = (nn.Linear(i, o, bias=False) for i, o in ((8, 16), (16, 8), (8, 4)))
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.reads == "multiplies":
            return functional.linear(y, self.down.weight)
        if self.reads == "asks":
            assert hasattr(self.down, "weight") in (True, False)
            _ = getattr(self.down, "weight", None)
        if self.reads == "routes":
            scores, chosen = self.gate(x).softmax(-1).topk(2)
            x = x * (scores * chosen).sum(-1, keepdim=True)
        if self.reads == "chooses tokens":  # as an indexer of sparse attention does: not from what the layer gives
            x = x + (self.gate(x) @ self.gate(x).transpose(1, 2)).topk(2).values.sum()
        if self.reads == "mixes":  # what two layers gave
            x = x + (self.down(y) + x).topk(2).values.sum()
        if self.reads == "cuts":  # a part of what it gives
            x = x + self.gate(x)[..., :2].topk(1).values
        if self.reads == "branches":
            x = x * 2 if bool((x > 0).all()) else x
        return x + self.down(y)


class Model(nn.Module):
    """As much of a causal language model as a trial needs."""

    def __init__(self, *reads: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 8)
        self.register_buffer("positions", torch.arange(4), persistent=False)
        self.table = torch.ones(4, 8)
        self.layers = nn.ModuleList(Block(word) for word in reads)
        self.has_run = False
        self.recasts = False

    def forward(self, input_ids: Tensor) -> Tensor:
        assert isinstance(self.positions, Tensor)
        x = self.embed(input_ids) + self.table[self.positions]
        self.has_run = True
        if self.recasts:
            self.register_buffer("positions", self.positions.int(), persistent=False)
        for block in self.layers:
            x = block(x)
        return x


def tried(*reads: str) -> tuple[Trial, Model]:
    with torch.device("meta"):
        model = Model(*reads)
    model.positions, model.table = torch.arange(4), torch.ones(4, 8)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Embedding))}
    return try_packed(model, layers, {}, list(model.layers)), model  # pyright: ignore[reportArgumentType]


def test_a_weight_that_is_read_is_found_in_every_block_like_it() -> None:
    trial, _ = tried("", "multiplies", "multiplies")
    assert not trial.failure
    assert trial.readers.keys() == {f"layers.{i}.down" for i in range(3)}
    assert set(trial.readers.values()) == {"test_trial.py, in forward"}


def test_asking_is_not_reading() -> None:
    trial, _ = tried("asks", "asks")
    assert trial == Trial(idle=frozenset({"layers.0.gate", "layers.1.gate"}))


def test_a_layer_before_a_top_k_of_all_its_outputs_is_a_router() -> None:
    assert tried("routes", "routes")[0] == Trial(routers={"layers.0.gate", "layers.1.gate"})
    for other in ("chooses tokens", "mixes", "cuts"):
        assert not tried("", other)[0].routers


def test_what_depends_on_data_is_answered() -> None:
    assert tried("branches")[0] == Trial(idle=frozenset({"layers.0.gate"}))


def test_the_model_is_as_it_was() -> None:
    _, model = tried("multiplies", "routes")
    assert not model.has_run
    assert type(model.layers[0].down) is nn.Linear  # pyright: ignore[reportAttributeAccessIssue]
    assert [name for name, _ in model.layers[0].named_parameters()] == ["up.weight", "down.weight", "gate.weight"]
    assert "forward" not in vars(model.layers[0])
    assert torch.equal(model.positions, torch.arange(4))  # pyright: ignore[reportArgumentType]
    assert torch.equal(model.table, torch.ones(4, 8))


def test_a_buffer_that_gets_another_dtype_is_found_and_put_back() -> None:
    with torch.device("meta"):
        model = Model("")
    model.recasts = True
    assert try_packed(model, {}, {}).recast == "positions"  # pyright: ignore[reportArgumentType]
    assert model.positions.dtype == torch.long  # pyright: ignore[reportAttributeAccessIssue]


def test_failure_is_told() -> None:
    class Broken(Model):
        def forward(self, input_ids: Tensor) -> Tensor:
            raise RuntimeError("\n\nnot on meta\nat all")

    with torch.device("meta"):
        model = Broken("")
    trial = try_packed(model, {"layers.0.up": model.layers[0].up}, {}, [])  # pyright: ignore
    assert trial.failure == "RuntimeError: not on meta"
    assert not trial.idle  # nothing is known
    assert type(model.layers[0].up) is nn.Linear  # pyright: ignore[reportAttributeAccessIssue]


def inventory_of(kind: str, **sizes: Any) -> Inventory:
    known = CONFIG_MAPPING[kind]()
    common = {name: value for name, value in SIZES.items() if hasattr(known, name)}
    config: PreTrainedConfig = CONFIG_MAPPING[kind](**{**common, **sizes})
    return take_inventory(build_skeleton(config))


@pytest.mark.parametrize(
    ("kind", "sizes", "found"),
    [
        ("llama", {}, set()),
        ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 2}, set()),
        ("mamba", {"state_size": 8}, {"mixer.dt_proj", "lm_head"}),
        ("rwkv", {"attention_hidden_size": 64}, {"attention.output", "feed_forward.value"}),
        ("falcon", {}, set()),
        (
            "deepseek_v32",
            {
                "num_experts_per_tok": 2,
                "n_routed_experts": 4,
                "n_group": 1,
                "topk_group": 1,
                "moe_intermediate_size": 32,
            },
            {"indexer.weights_proj"},
        ),
    ],
)
def test_models_of_transformers(kind: str, sizes: dict[str, Any], found: set[str]) -> None:
    inventory = inventory_of(kind, **sizes)
    assert inventory.untried == ""
    ends = {m.name.split(f".{m.block}.")[-1].removeprefix("self_attn.") for m in inventory.modules if m.obstacle}
    assert ends == found


def test_what_text_does_not_reach_cannot_be_calibrated() -> None:
    inventory = inventory_of(
        "bart", d_model=64, decoder_layers=2, decoder_ffn_dim=64, decoder_attention_heads=2, encoder_layers=1
    )
    idle = {m.name.split(".layers.")[-1].split(".", 1)[-1] for m in inventory.modules if m.idle}
    assert idle == {f"encoder_attn.{letter}_proj" for letter in ("q", "k", "v", "out")}
    rules: list[dict[str, Any]] = [{"match": "linear", "scheme": "int4-g32"}]
    gptq: dict[str, Any] = {"version": 1, "rounding": {"method": "gptq"}, "calibration": {}}
    with pytest.raises(PlanError, match=r"encoder_attn.*text alone does not run it .* so gptq has nothing"):
        make_plan(load_recipe({**gptq, "rules": rules}), inventory)
    rules.append({"match": "*.encoder_attn.*", "scheme": "int4-g32", "rounding": {"method": "rtn"}})
    assert make_plan(load_recipe({**gptq, "rules": rules}), inventory).warnings == ()
    assert make_plan(load_recipe({"version": 1, "rules": rules[:1]}), inventory).quantized


def test_a_second_stack_is_said_loudly() -> None:
    inventory = inventory_of("hrm_text")
    recipe = load_recipe({"version": 1, "rules": [{"match": "linear", "scheme": "int8"}]})
    (warning,) = make_plan(recipe, inventory).warnings
    assert warning.startswith("linear layers outside of the decoder blocks stay: ")
    assert re.search(r"the first is model\.[HL]_module\.layers\.0\.", warning)


def test_blocks_of_a_model_that_calls_its_head_decoder() -> None:
    assert inventory_of("modernbert-decoder", global_attn_every_n_layers=2).blocks == 3


def test_routers_by_name_and_by_what_they_do() -> None:
    moe = inventory_of("hunyuan_v1_moe", num_experts=4, moe_topk=2, moe_intermediate_size=32, head_dim=32)
    assert [m.kind for m in moe.modules if m.name.endswith("gate.wg")] == ["router"] * 3
    altup = inventory_of(
        "gemma3n_text", num_kv_shared_layers=0, layer_types=["full_attention"] * 3, intermediate_size=[64] * 3,
        hidden_size_per_layer_input=32, vocab_size_per_layer_input=64, laurel_rank=32, head_dim=32,
        activation_sparsity_pattern=[0.0] * 3,
    )  # fmt: skip
    assert {m.kind for m in altup.modules if m.name.endswith("modality_router")} == {"router"}


def test_what_is_found_to_be_a_router_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Trial(routers={"model.layers.0.self_attn.q_proj", "lm_head"})
    monkeypatch.setattr(obstacles, "try_packed", lambda *_: found)
    modules = {m.name: m for m in inventory_of("llama").modules}
    router = modules["model.layers.0.self_attn.q_proj"]
    assert (router.kind, router.sets, router.fused) == ("router", {"router"}, None)
    assert modules["lm_head"].sets == {"lm_head"}  # a top-k over tokens is sampling
    assert modules["model.layers.0.self_attn.k_proj"].kind == "linear"


def test_experts_are_passed_over_as_a_whole() -> None:
    """What chooses among them depends on data; those of DBRX lie deeper, those of JetMoE have another name."""
    for kind, failure in (("dbrx", ""), ("jetmoe", "Cannot copy out of meta tensor")):
        inventory = take_inventory(build_skeleton(tiny_config(kind)))
        assert "experts" in {module.kind for module in inventory.modules}
        assert failure in inventory.untried
        assert bool(failure) == bool(inventory.untried)


def test_a_layer_that_computes_something_else_stays() -> None:
    inventory = inventory_of("deepseek_v4", num_experts_per_tok=2, n_routed_experts=4, moe_intermediate_size=32)
    reasons = {m.obstacle for m in inventory.modules if m.name.endswith("o_a_proj")}
    assert reasons == {"it is a DeepseekV4GroupedLinear, which computes something else than nn.Linear"}
    assert inventory.untried == ""  # nor does it take part in the trial


@pytest.mark.parametrize(
    ("kind", "sizes", "said"),
    [
        ("llama", {}, ""),
        ("gpt_oss", {"num_local_experts": 4, "head_dim": 32}, ""),
        (
            "mamba2",
            {"num_heads": 4, "head_dim": 32, "n_groups": 1, "expand": 2},
            "its own initialisation reads the weight",
        ),
        ("gpt_bigcode", {"n_embd": 64, "n_layer": 2, "n_head": 2}, "its own initialisation reads the weight"),
        ("mixtral", {"num_local_experts": 2, "head_dim": 32}, "merges this one from several"),
        ("llama4_text", {"num_local_experts": 2, "head_dim": 32, "intermediate_size_mlp": 64}, "replaces the experts"),
        ("ctrl", CTRL, "model code gives transformer.pos_encoding another dtype"),
        ("ctrl", CTRL | {"dtype": "float32"}, ""),
        ("hrm_text", {}, "cannot split a stored tensor"),
    ],
)
def test_what_plain_transformers_does(kind: str, sizes: dict[str, Any], said: str) -> None:
    """What the plan says; tests/architectures loads models of these types in plain transformers, which agrees."""
    inventory = inventory_of(kind, **sizes)
    recipe = load_recipe({"version": 1, "rules": [{"match": "linear", "scheme": "int8"}], "portable": False})
    verdict = readers(make_plan(recipe, inventory))[TRANSFORMERS]
    assert verdict.ok == (not said)
    assert said in verdict.note


def test_only_packed_layers_hinder_an_initialisation() -> None:
    inventory = inventory_of("gpt_bigcode", n_embd=64, n_layer=2, n_head=2)
    hindering = {m.name.split(".", 3)[-1] for m in inventory.modules if m.plain_obstacle and m.kind == "linear"}
    assert hindering == {"attn.c_proj", "mlp.c_proj"}
    # A layer that stays anyway hinders nobody, though both the model and its initialisation read it.
    mamba = inventory_of("mamba", state_size=8)
    assert {m.name.rpartition(".")[2] for m in mamba.modules if m.plain_obstacle} == {"out_proj", "embeddings"}
    assert {m.name.rpartition(".")[2] for m in mamba.modules if m.obstacle} == {"dt_proj", "lm_head"}
    rules = [{"match": "linear", "scheme": "int8"}, {"match": "*.c_proj", "scheme": "keep"}]
    plan = make_plan(load_recipe({"version": 1, "rules": rules}), inventory)
    assert readers(plan)[TRANSFORMERS].ok
    for dense_at_load in ("int4-g32-asym", "int8-asym"):
        rules = [{"match": "linear", "scheme": dense_at_load}]
        assert readers(make_plan(load_recipe({"version": 1, "rules": rules}), inventory))[TRANSFORMERS].ok


def test_a_file_that_is_dense_at_load_may_give_buffers_another_dtype() -> None:
    rules: list[dict[str, Any]] = [{"match": "linear", "scheme": "int8-asym"}]
    plan = make_plan(load_recipe({"version": 1, "rules": rules}), inventory_of("ctrl", **CTRL))
    assert readers(plan)[TRANSFORMERS].ok


def test_what_the_checkpoint_stores_merged_stays() -> None:
    inventory = inventory_of("hrm_text")
    rules: list[dict[str, Any]] = [{"match": "linear", "scheme": "int8"}]
    plan = make_plan(load_recipe({"version": 1, "rules": rules}), inventory)
    assert {row.module.name.rpartition(".")[2] for row in plan.quantized} == {"o_proj", "down_proj"}
    merged = next(
        row for row in plan.rows if row.module.name.endswith("layers.0.mlp.up_proj") and row.rule != "no rule"
    )
    assert merged.note == "the checkpoint stores it merged with others, or in parts"
    with pytest.raises(PlanError, match=r"cannot be packed: the checkpoint stores it merged .*; keep it"):
        make_plan(load_recipe({"version": 1, "rules": [{"match": merged.module.name, "scheme": "int8"}]}), inventory)


def test_what_runs_in_several_blocks_with_one_weight_stays() -> None:
    kinds = ["mamba", "hybrid", "mamba", "hybrid"]
    inventory = inventory_of(
        "zamba", num_hidden_layers=4, layers_block_type=kinds, n_mamba_heads=2, mamba_d_state=8, mamba_dt_rank=8
    )
    rules: list[dict[str, Any]] = [{"match": "linear", "scheme": "int8"}]
    rows = {row.module.name: row for row in make_plan(load_recipe({"version": 1, "rules": rules}), inventory).rows}
    first, second = (f"model.layers.{i}.shared_transf.self_attn.q_proj" for i in (1, 3))
    assert rows[first].note == f"{second} shares its weight"
    assert rows[second].note == f"it shares the weight of {first}"
    assert rows[first].scheme.is_keep
    assert rows[second].scheme.is_keep
    assert rows["model.layers.3.mamba_decoder.mamba.out_proj"].scheme.name == "int8"
    with pytest.raises(PlanError, match=r"shared_transf.*share its weight; keep it"):
        make_plan(load_recipe({"version": 1, "rules": [*rules, {"match": first, "scheme": "int8"}]}), inventory)


def test_plan_of_a_model_that_reads_weights() -> None:
    inventory = inventory_of("mamba", state_size=8)
    rules: list[dict[str, Any]] = [{"match": "linear", "scheme": "int8"}]
    rows = {row.module.name: row for row in make_plan(load_recipe({"version": 1, "rules": rules}), inventory).rows}
    assert rows["backbone.layers.1.mixer.dt_proj"].note == "model code reads its weight (modeling_mamba.py, in forward)"
    assert rows["backbone.layers.1.mixer.in_proj"].scheme.name == "int8"
    with pytest.raises(PlanError, match="lm_head: cannot be packed: model code reads its weight"):
        make_plan(
            load_recipe({"version": 1, "rules": [*rules, {"match": ["embedding", "lm_head"], "scheme": "int8"}]}),
            inventory,
        )


@pytest.mark.parametrize(
    "config", [MambaConfig(**dict.fromkeys(("vocab_size", "hidden_size"), 64), num_hidden_layers=2)]
)
def test_a_trial_changes_no_logits(config: PreTrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.arange(5)[None]
    before = model(tokens).logits
    take_inventory(model)
    assert torch.equal(model(tokens).logits, before)


def test_rwkv_is_not_rescaled_by_a_trial() -> None:
    model = build_skeleton(RwkvConfig(vocab_size=64, hidden_size=64, attention_hidden_size=64, num_hidden_layers=2))
    take_inventory(model)
    assert not model.rwkv.layers_are_rescaled  # pyright: ignore[reportAttributeAccessIssue]
