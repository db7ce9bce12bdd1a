"""What a packed folder must hold: names, dtypes and shapes, from the headers, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmquant.errors import CheckpointError
from tests.hf.conftest import edit_quantization, schemes_in_blocks, write_packed

Folder = Callable[[str], Path]
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def packed(dense_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dense, out = dense_folder("llama-bias"), tmp_path_factory.mktemp("packed")
    write_packed(dense, out, schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int4-g32-asym"))
    return out


def changed(packed: Path, out: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(packed / "model.safetensors")
    change(tensors)
    out.mkdir()
    (out / "config.json").write_bytes((packed / "config.json").read_bytes())
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (f"{UP}.weight_packed", torch.float32),
        (f"{UP}.weight_packed", torch.int64),
        (f"{UP}.weight_zero_point", torch.float16),
        (f"{UP}.weight_scale", torch.float8_e4m3fn),
        (f"{UP}.weight_scale", torch.int8),
        (f"{UP}.weight_shape", torch.float64),
        (f"{UP}.bias", torch.int32),
        ("model.norm.weight", torch.int16),
        ("model.embed_tokens.weight", torch.float8_e5m2),
    ],
)
def test_wrong_dtype(packed: Path, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    out = changed(packed, tmp_path / "q", lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(CheckpointError, match=f"{name} is {str(dtype).removeprefix('torch.')}"):
        AutoModelForCausalLM.from_pretrained(out, dtype="auto")


def test_wider_floats_are_right(packed: Path, tmp_path: Path) -> None:
    names = ("model.norm.weight", f"{UP}.weight_scale", f"{UP}.bias")
    out = changed(packed, tmp_path / "q", lambda t: t.update({name: t[name].float() for name in names}))
    AutoModelForCausalLM.from_pretrained(out, dtype="auto")


@pytest.mark.parametrize("name", [f"{UP}.weight_packed", f"{UP}.weight_scale", f"{UP}.bias", "model.norm.weight"])
def test_wrong_shape(packed: Path, tmp_path: Path, name: str) -> None:
    out = changed(packed, tmp_path / "q", lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    with pytest.raises(CheckpointError, match=f"{name} is .*wanted"):
        AutoModelForCausalLM.from_pretrained(out, dtype="auto")


def test_wrong_sizes_beside_a_weight(packed: Path, tmp_path: Path) -> None:
    out = changed(packed, tmp_path / "q", lambda tensors: tensors[f"{UP}.weight_shape"].add_(1))
    with pytest.raises(CheckpointError, match=r"weight_shape says \[97, 65\]"):
        AutoModelForCausalLM.from_pretrained(out, dtype="auto")


@pytest.mark.parametrize("name", ["model.norm.weight", f"{UP}.bias", f"{UP}.weight_zero_point", "lm_head.weight"])
def test_missing(packed: Path, tmp_path: Path, name: str) -> None:
    out = changed(packed, tmp_path / "q", lambda tensors: tensors.__delitem__(name))
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        AutoModelForCausalLM.from_pretrained(out, dtype="auto")


def test_no_packed_weight_has_a_place(packed: Path, tmp_path: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".layers." in name]:
            tensors[name.replace(".layers.", ".blocks.")] = tensors.pop(name)

    with pytest.raises(CheckpointError, match=r"none of the 14 packed weights .* belongs to a module of Llama"):
        AutoModelForCausalLM.from_pretrained(changed(packed, tmp_path / "q", rename), dtype="auto")


def test_a_config_that_does_not_know_its_weights(packed: Path, tmp_path: Path) -> None:
    out = changed(packed, tmp_path / "q", lambda _: None)
    edit_quantization(out, lambda stored: stored["ignore"].append("re:.*up_proj"))
    with pytest.raises(CheckpointError, match=r"up_proj is packed, but the quantization_config .* does not say how"):
        AutoModelForCausalLM.from_pretrained(out, dtype="auto")
