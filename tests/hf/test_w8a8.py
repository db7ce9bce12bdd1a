"""W8A8 checkpoints: kept as integers, against what compressed-tensors makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer
from transformers.utils.quantization_config import CompressedTensorsConfig

from llmquant.compat.quantizers import METHOD
from llmquant.errors import CheckpointError
from llmquant.hf.swap import swap_packed
from llmquant.kernels.backend import w8a8_name
from llmquant.kernels.cpu import native
from llmquant.nn.accuracy import kernels_used
from llmquant.nn.int8_linear import Int8Linear
from tests.hf.conftest import TOKENS, edit_quantization, logits, schemes_in_blocks, write_packed

Folder = Callable[[str], Path]
PREPARED = w8a8_name(native.library() is not None)


def mixed(name: str) -> str:
    return "int4-g32" if name.endswith("down_proj") else "w8a8-dynamic"


def write(dense: Path, out: Path, scheme: str | Callable[[str], str] = "w8a8-dynamic", *, static: bool = False) -> Any:
    """A checkpoint, and the dense model with the same weights."""
    fake = write_packed(dense, out, schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), scheme))
    if static:
        tensors = load_file(out / "model.safetensors")
        names = [key.removesuffix("_scale") for key in tensors if key.endswith("weight_scale")]
        tensors |= {name.removesuffix("weight") + "input_scale": torch.full((1,), 0.02).bfloat16() for name in names}
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})

        def change(stored: dict) -> None:
            stored["config_groups"]["group_0"]["input_activations"] |= {"strategy": "tensor", "dynamic": False}

        edit_quantization(out, change)
    return fake


def load(folder: Path, **kwargs: Any) -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **{"dtype": "auto"} | kwargs)
    model, info = loaded
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


@pytest.mark.parametrize(
    ("name", "scheme", "static"),
    [
        ("llama", "w8a8-dynamic", False),
        ("llama-bias", "w8a8-dynamic", True),
        ("llama", mixed, False),
        ("qwen3-tied", "w8a8-dynamic", False),
    ],
)
def test_equals_compressed_tensors_and_saves_the_same(
    dense_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, scheme: Any, static: bool
) -> None:
    fake = write(dense_folder(name), tmp_path / "q", scheme, static=static)
    model = load(tmp_path / "q")
    layers = {n for n, module in model.named_modules() if isinstance(module, Int8Linear)}
    linears = {n for n, module in fake.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    assert layers == {n for n in linears if scheme != mixed or "down_proj" not in n}
    assert kernels_used(model)[PREPARED] == len(layers)
    assert not any(parameter.requires_grad for n, parameter in model.named_parameters() if "scale" in n)
    model.save_pretrained(tmp_path / "again")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("q", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    stored = [json.loads((tmp_path / f / "config.json").read_text())["quantization_config"] for f in ("q", "again")]
    assert stored[0] == stored[1]
    assert torch.equal(logits(load(tmp_path / "again")), logits(model))
    # In float32 both compute the same but for the order of sums; a code may still fall on the other side of a half.
    ours = logits(load(tmp_path / "q", dtype=torch.float32))
    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, METHOD, CompressedTensorsHfQuantizer)
    monkeypatch.setitem(AUTO_QUANTIZATION_CONFIG_MAPPING, METHOD, CompressedTensorsConfig)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype=torch.float32)
    with torch.no_grad():
        theirs = plain(TOKENS).logits
    dense = logits(fake.float())
    assert (ours - theirs).norm() < 0.2 * (dense - theirs).norm()


def test_swap_packed_and_dequantize(dense_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = write(dense_folder("llama"), tmp_path / "q")
    wanted = logits(load(tmp_path / "q"))
    dense = load(tmp_path / "q").dequantize()
    assert torch.equal(logits(dense), logits(fake))
    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, METHOD, CompressedTensorsHfQuantizer)
    monkeypatch.setitem(AUTO_QUANTIZATION_CONFIG_MAPPING, METHOD, CompressedTensorsConfig)
    model = swap_packed(AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype="auto"))
    assert kernels_used(model) == {PREPARED: 14}
    assert torch.equal(logits(model), wanted)
    late = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype="auto")
    late(TOKENS)
    with pytest.raises(CheckpointError, match="first forward"):
        swap_packed(late)


@pytest.mark.parametrize("lost", ["input_scale", "weight_scale", "weight"])
def test_missing_tensors_are_errors(dense_folder: Folder, tmp_path: Path, lost: str) -> None:
    write(dense_folder("llama"), tmp_path / "q", static=True)
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    del tensors[f"model.layers.1.mlp.up_proj.{lost}"]
    save_file(tensors, tmp_path / "q" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj"):
        load(tmp_path / "q")


def test_asymmetric_activations_stay_with_compressed_tensors(
    dense_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake = write(dense_folder("llama"), tmp_path / "q")
    edit_quantization(
        tmp_path / "q", lambda stored: stored["config_groups"]["group_0"]["input_activations"].update(symmetric=False)
    )
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype="auto")
    assert not kernels_used(model)
    logits(model)  # makes it dense
    names = [name for name, module in fake.named_modules() if isinstance(module, nn.Linear)]
    assert all(torch.equal(model.get_submodule(name).weight, fake.get_submodule(name).weight) for name in names)
    assert "are quantized in a format that llmquant does not run" in caplog.text
