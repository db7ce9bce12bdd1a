"""Loading keeps weights packed, equals the dense model bit for bit, and saves the same files again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig

from llmquant.errors import CheckpointError
from llmquant.formats.compressed_tensors.codec import encode
from llmquant.formats.compressed_tensors.config import quantization_config
from llmquant.hf.recipe import RecipeConfig
from llmquant.nn.accuracy import kernels_used
from llmquant.nn.storage import PackedStorage
from llmquant.spec import Scheme
from tests.hf.conftest import TOKENS, edit_quantization, logits, round_to_nearest, schemes_in_blocks, write_packed

# Compared bit for bit with dense layers.
pytestmark = pytest.mark.usefixtures("reference_kernels")

Folder = Callable[[str], Path]


def mixed(name: str) -> str:
    return "int8" if name.endswith(("down_proj", "c_proj")) else "int4-g32-asym" if "0" in name else "int3-g16"


def packed_names(model: torch.nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, PackedStorage)}


def load_strict(folder: Path, **kwargs: Any) -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True, **kwargs)
    model, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model


CASES = [
    ("llama", "int4-g32"),
    ("llama", "int2-g16"),
    ("llama", "int8"),
    ("llama", "int4-tensor"),
    ("llama-bias", "int4-g16-asym"),
    ("llama", mixed),
    ("qwen3-tied", "int4-g32-asym"),
    ("qwen3-tied", "int3-g32"),
    ("gpt2", "int4-g32"),
    ("gpt2", mixed),
]


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_from_pretrained_stays_packed_and_equals_dense(dense_folder: Folder, tmp_path: Path, name: str, scheme) -> None:
    dense = dense_folder(name)
    schemes = schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), scheme)
    fake = write_packed(dense, tmp_path / "q", schemes)
    model = load_strict(tmp_path / "q")
    assert packed_names(model) == set(schemes)
    assert {n: m.scheme for n, m in model.named_modules() if isinstance(m, PackedStorage)} == schemes
    assert not hasattr(model, "ct_decompress_hook")
    assert torch.equal(logits(model), logits(fake))
    assert packed_names(model) == set(schemes)  # after the forward too
    assert not any(p.requires_grad for n, p in model.named_parameters() if "weight_" in n)
    assert sum(kernels_used(model).values()) == len(schemes)


@pytest.mark.parametrize(("name", "scheme"), [("llama", mixed), ("qwen3-tied", "int4-g32-asym"), ("gpt2", "int8")])
def test_saving_writes_the_same_folder(dense_folder: Folder, tmp_path: Path, name: str, scheme) -> None:
    dense = dense_folder(name)
    write_packed(dense, tmp_path / "q", schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), scheme))
    model = load_strict(tmp_path / "q")
    logits(model)  # plain transformers would save dense weights from now on
    model.save_pretrained(tmp_path / "again")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("q", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("q", "again")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    assert torch.equal(logits(load_strict(tmp_path / "again")), logits(model))


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_saved_folder_loads_in_compressed_tensors(dense_folder: Folder, tmp_path: Path) -> None:
    """The independent reader: the original quantizer, on the folder that we saved."""
    dense = dense_folder("llama")
    write_packed(dense, tmp_path / "q", schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32"))
    model = load_strict(tmp_path / "q")
    model.save_pretrained(tmp_path / "again")
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", dtype="auto", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    assert not packed_names(plain)
    assert torch.equal(plain.model.layers[0].mlp.down_proj.weight, model.model.layers[0].mlp.down_proj.dequantize())
    assert torch.equal(logits(plain), logits(model))


def test_stored_dequantize_is_advice_to_others(dense_folder: Folder, tmp_path: Path) -> None:
    dense = dense_folder("llama")
    schemes = schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32-asym")
    write_packed(dense, tmp_path / "q", schemes)
    edit_quantization(tmp_path / "q", lambda stored: stored.update(dequantize=True))
    model = load_strict(tmp_path / "q")
    assert packed_names(model) == set(schemes)
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]["dequantize"] is True
    assert model.dequantize().model.layers[0].mlp.down_proj.weight.dtype == torch.bfloat16  # not the name of the dtype


def test_generate_compile_and_gradients(dense_folder: Folder, tmp_path: Path) -> None:
    dense = dense_folder("llama")
    schemes = schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32")
    fake = write_packed(dense, tmp_path / "q", schemes)
    model = load_strict(tmp_path / "q")
    greedy = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(TOKENS, **greedy), fake.generate(TOKENS, **greedy))
    embedded: Any = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    model(inputs_embeds=embedded).logits.float().sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.abs().sum() > 0
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(TOKENS, use_cache=False).logits, logits(fake))


def test_disk_offload(dense_folder: Folder, tmp_path: Path) -> None:
    dense = dense_folder("llama")
    schemes = schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32-asym")
    fake = write_packed(dense, tmp_path / "q", schemes)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
              "model.rotary_emb": "cpu", "lm_head": "disk"}  # fmt: skip
    model = load_strict(tmp_path / "q", device_map=places, offload_folder=tmp_path / "offload")
    assert model.model.layers[1].mlp.down_proj.weight_packed.is_meta
    assert torch.equal(logits(model), logits(fake))
    assert torch.equal(logits(model), logits(fake))


def test_float32_model_means_the_same_weights(dense_folder: Folder, tmp_path: Path) -> None:
    dense = dense_folder("llama")
    write_packed(dense, tmp_path / "q", schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32"))
    stored, wide = (AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype=d) for d in ("auto", torch.float32))
    layer, wider = (m.model.layers[0].mlp.down_proj for m in (stored, wide))
    assert wider.weight_scale.dtype == torch.float32
    assert torch.equal(layer.quantized().codes, wider.quantized().codes)
    assert torch.equal(layer.weight_scale.float(), wider.weight_scale)
    assert torch.equal(layer.dequantize(), wider.dequantize().to(torch.bfloat16))  # one rounding, in either order


def test_dequantize_gives_a_plain_model(dense_folder: Folder, tmp_path: Path) -> None:
    dense = dense_folder("qwen3-tied")
    fake = write_packed(
        dense, tmp_path / "q", schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32")
    )
    model = load_strict(tmp_path / "q").dequantize()
    assert not packed_names(model)
    assert torch.equal(logits(model), logits(fake))
    model.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())


def test_packed_experts_go_to_the_original(
    dense_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As other tools write them: one packed weight for each projection of each expert."""
    dense = dense_folder("qwen3-moe")
    tensors = load_file(dense / "model.safetensors")
    names = [key.removesuffix(".weight") for key in tensors if "_proj.weight" in key]
    assert sum(".experts." in name for name in names) == 2 * 4 * 3
    schemes = {name: Scheme.parse("int4-g32") for name in names}
    config = json.loads((dense / "config.json").read_text())
    config["quantization_config"] = quantization_config(schemes, ["lm_head"])
    stored, fake = {}, {}
    for key, tensor in tensors.items():
        name = key.removesuffix(".weight")
        if name in schemes:
            quantized = round_to_nearest(tensor, schemes[name])
            stored |= encode(name, quantized, schemes[name])
            fake[key] = quantized.dequantize()
        else:
            stored[key] = fake[key] = tensor
    for folder, content in (("q", stored), ("fake", fake)):
        shutil.copytree(dense, tmp_path / folder)
        save_file(content, tmp_path / folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        model = load_strict(tmp_path / "q")
    assert "experts.0.down_proj is packed, and Qwen3MoeForCausalLM merges it with others" in caplog.text
    assert not packed_names(model)
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "fake", dtype="auto")))


def test_kept_experts_and_packed_attention(dense_folder: Folder, tmp_path: Path) -> None:
    rules = [{"match": "attention", "scheme": "int4-g32"}, {"match": "experts", "scheme": "keep"}]
    model = AutoModelForCausalLM.from_pretrained(
        dense_folder("qwen3-moe"), dtype="auto", quantization_config=RecipeConfig({"version": 1, "rules": rules})
    )
    assert len(packed_names(model)) == 8
    model.save_pretrained(tmp_path / "q")
    reloaded = load_strict(tmp_path / "q")
    assert packed_names(reloaded) == packed_names(model)
    assert torch.equal(logits(reloaded), logits(model))
    keys = load_file(tmp_path / "q" / "model.safetensors").keys()
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in keys


@pytest.mark.parametrize("suffix", ["weight_packed", "weight_scale"])
def test_missing_tensor_is_an_error(dense_folder: Folder, tmp_path: Path, suffix: str) -> None:
    dense = dense_folder("llama")
    write_packed(dense, tmp_path / "q", schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32"))
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    del tensors[f"model.layers.1.mlp.up_proj.{suffix}"]
    save_file(tensors, tmp_path / "q" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "q")


def test_group_that_does_not_divide_is_an_error(dense_folder: Folder, tmp_path: Path) -> None:
    dense = dense_folder("llama")
    write_packed(dense, tmp_path / "q", schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32"))
    edit_quantization(tmp_path / "q", lambda s: s["config_groups"]["group_0"]["weights"].update(group_size=128))
    with pytest.raises(CheckpointError, match="inputs are not divisible"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "q")
