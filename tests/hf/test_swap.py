"""`swap_packed`: a model that plain transformers has loaded, before its first forward."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer
from transformers.utils.quantization_config import CompressedTensorsConfig

from llmquant.compat.quantizers import METHOD
from llmquant.errors import CheckpointError
from llmquant.hf.swap import swap_packed
from llmquant.nn.accuracy import kernels_used
from llmquant.nn.storage import PackedStorage
from tests.hf.conftest import logits, schemes_in_blocks, write_packed

# Compared bit for bit with dense layers.
pytestmark = pytest.mark.usefixtures("reference_kernels")

Folder = Callable[[str], Path]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers as it is without llmquant."""
    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, METHOD, CompressedTensorsHfQuantizer)
    monkeypatch.setitem(AUTO_QUANTIZATION_CONFIG_MAPPING, METHOD, CompressedTensorsConfig)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(("name", "scheme"), [("llama-bias", "int4-g32"), ("qwen3-tied", "int8")])
def test_swap_equals_dense_and_saves_the_same(dense_folder: Folder, tmp_path: Path, name: str, scheme: str) -> None:
    dense = dense_folder(name)
    schemes = schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), scheme)
    fake = write_packed(dense, tmp_path / "q", schemes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype="auto")
    assert not kernels_used(model)
    assert swap_packed(model) is model
    assert {n for n, m in model.named_modules() if isinstance(m, PackedStorage)} == set(schemes)
    assert torch.equal(logits(model), logits(fake))
    model.save_pretrained(tmp_path / "again")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("q", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    stored = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert (stored["quant_method"], stored["quantization_status"]) == (METHOD, "compressed")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype="auto")), logits(fake))
    assert swap_packed(model) is model


@pytest.mark.usefixtures("plain")
def test_too_late_after_a_forward(dense_folder: Folder, tmp_path: Path) -> None:
    dense = dense_folder("llama")
    write_packed(dense, tmp_path / "q", schemes_in_blocks(AutoModelForCausalLM.from_pretrained(dense), "int8"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype="auto")
    logits(model)
    with pytest.raises(CheckpointError, match="first forward"):
        swap_packed(model)


def test_unquantized_model_is_refused(dense_folder: Folder) -> None:
    with pytest.raises(CheckpointError, match="not quantized"):
        swap_packed(AutoModelForCausalLM.from_pretrained(dense_folder("llama")))
