"""A finished folder computes what its dequantized weights compute; what cannot become one is refused in time."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import llmquant
from llmquant.api import quantize
from llmquant.errors import CheckpointError, DataError, OutputError
from tests.engine.conftest import byte_tokenizer, tiny_llama

# Compared bit for bit with dense layers.
pytestmark = pytest.mark.usefixtures("reference_kernels")

RTN = {"version": 1, "name": "test", "rules": [{"match": "linear", "scheme": "int4-g32"}]}
LAST_KEPT = [{"match": "linear", "scheme": "int4-g32"}, {"match": "last_block", "scheme": "keep"}]


def dense_twin(source, folder):
    """Logits of the source model with the dequantized weights of the result."""
    packed = llmquant.load(folder)
    twin = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    for name, module in packed.named_modules():
        if hasattr(module, "weight_packed"):
            target = twin.get_submodule(name)
            dense = module.dequantize()
            target.weight.data = dense.T.contiguous() if type(target).__name__ == "Conv1D" else dense
    return packed, twin


def assert_equal_logits(packed, twin):
    ids = torch.arange(1, 25).reshape(2, 12)
    with torch.no_grad():
        assert torch.equal(packed(ids).logits, twin(ids).logits)


def saved(model, folder):
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_calibration_stops_before_a_kept_last_block(checkpoint, gptq_recipe, tmp_path):
    out = quantize(checkpoint, {**gptq_recipe, "rules": LAST_KEPT}, tmp_path / "out").folder
    assert_equal_logits(*dense_twin(checkpoint, out))


def test_gpt2_with_a_kept_block(tmp_path, gptq_recipe):
    config = AutoConfig.for_model("gpt2", vocab_size=257, n_embd=64, n_layer=3, n_head=4, n_positions=64)
    source = saved(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), tmp_path / "gpt2")
    for recipe in (RTN, gptq_recipe):
        rules = {"rules": LAST_KEPT, "portable": False}
        out = quantize(source, {**recipe, **rules}, tmp_path / recipe["name"]).folder
        assert_equal_logits(*dense_twin(source, out))


def test_router_bias_buffers_take_part_in_calibration(tmp_path, gptq_recipe, monkeypatch):
    config = AutoConfig.for_model(
        "deepseek_v3", vocab_size=257, hidden_size=64, intermediate_size=64, moe_intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2,
        n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    bias = torch.tensor([5.0, 5.0, -5.0, -5.0])
    model.get_buffer("model.layers.1.mlp.gate.e_score_correction_bias").copy_(bias)
    source = saved(model, tmp_path / "deepseek")
    seen = []
    original = llmquant.engine.weights.BlockWeights.load

    def load(self, index):
        original(self, index)
        if index == 1:
            seen.append(self._model.get_buffer("model.layers.1.mlp.gate.e_score_correction_bias").clone())

    monkeypatch.setattr(llmquant.engine.weights.BlockWeights, "load", load)
    rules = [{"match": "linear", "scheme": "int4"}, {"match": "experts", "scheme": "keep"}]
    quantize(source, {**gptq_recipe, "rules": rules}, tmp_path / "out")
    assert torch.equal(seen[0].float(), bias)


def test_an_incomplete_checkpoint_is_refused_by_quantize_and_load(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    model = tiny_llama()
    model.save_pretrained(copy)
    file = copy / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no tensor for model\.norm\.weight"):
        quantize(copy, RTN, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"no tensor for model\.norm\.weight"):
        llmquant.load(copy)


def test_foreign_folders_beside_the_result_are_left_alone(checkpoint, tmp_path):
    for name in ("out.replaced", "other.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        quantize(checkpoint, RTN, tmp_path / "out", overwrite=overwrite)
    with pytest.raises(OutputError, match="is not an interrupted run; move it away"):
        quantize(checkpoint, RTN, tmp_path / "other", overwrite=True)
    for name in ("out.replaced", "other.partial"):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["thesis.tex"]


def test_a_linked_output_lands_where_the_link_points(checkpoint, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")
    for overwrite in (False, True):
        result = quantize(checkpoint, RTN, tmp_path / "out", overwrite=overwrite)
        assert result.folder == tmp_path / "disk" / "real"
        assert (tmp_path / "out" / "config.json").exists()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


def test_a_tokenizer_of_another_model_is_named(gptq_recipe, tmp_path):
    source = saved(tiny_llama(vocab_size=100), tmp_path / "small")
    with pytest.raises(DataError, match="but the model knows 100"):
        quantize(source, gptq_recipe, tmp_path / "out")


def test_a_config_without_dtype_gets_that_of_the_weights(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    config = json.loads((copy / "config.json").read_text())
    del config["dtype"]
    (copy / "config.json").write_text(json.dumps(config))
    out = quantize(copy, RTN, tmp_path / "out").folder
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert llmquant.plan(copy, RTN).bytes_before == llmquant.plan(checkpoint, RTN).bytes_before


@pytest.mark.parametrize("change", [{"hidden_size": "abc"}, {"num_attention_heads": 0}, {"dtype": "foo"}])
def test_nonsense_in_the_config_is_a_checkpoint_error(checkpoint, tmp_path, change):
    config = json.loads((checkpoint / "config.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError):
        llmquant.plan(path, RTN)
