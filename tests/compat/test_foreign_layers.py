"""Checkpoints of other tools: what plain transformers reads is measured, and what it cannot read says what it needs."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import llmquant
from llmquant.compat import foreign_layers
from llmquant.compat.foreign_layers import check_readers, foreign_method
from llmquant.errors import CheckpointError
from llmquant.eval.precision import choose
from tests.engine.conftest import save_tiny, tiny_llama

FP8 = torch.float8_e4m3fn
GIVEN = {"length": 32, "speed": 0.0, "max_windows": 8}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("foreign") / "dense")
    (folder.parent / "text.txt").write_text("\n".join(f"line {i} of a text with windows enough" for i in range(40)))
    return folder


def _fine_grained(name: str, weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().max() / 448
    return {f"{name}.weight": (weight / scale).to(FP8), f"{name}.weight_scale_inv": scale.reshape(1, 1)}


def _by_channel(name: str, weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {f"{name}.weight": (weight / scale).to(FP8), f"{name}.weight_scale": scale.bfloat16()}


_FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
_GROUP = {"targets": ["Linear"], "weights": _FLOAT8, "input_activations": None, "output_activations": None}
KINDS = {
    "fp8": (
        _fine_grained,
        {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]},
    ),
    "compressed-tensors": (
        _by_channel,
        {
            "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
            "ignore": ["lm_head"], "config_groups": {"group_0": _GROUP},
        },
    ),
}  # fmt: skip


def _quantized(dense: Path, kind: str, folder: Path) -> Path:
    convert, config = KINDS[kind]
    shutil.copytree(dense, folder)
    tensors = load_file(folder / "model.safetensors")
    for key in [key for key in tensors if key.endswith("_proj.weight")]:
        tensors |= convert(key.removesuffix(".weight"), tensors[key].float())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    _set_config(folder, config)
    return folder


def _set_config(folder: Path, quantization: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantization}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_becomes_dense_is_measured_like_any(dense: Path, tmp_path: Path, kind: str) -> None:
    """The weights are those of the file (by hand, below), in inference mode too, and every reading is in float32."""
    folder = _quantized(dense, kind, tmp_path / "q")
    pair, alone = (
        llmquant.evaluate(folder, baseline, text=str(dense.parent / "text.txt"), **GIVEN) for baseline in (dense, None)
    )
    parameters = sum(tensor.numel() for tensor in load_file(dense / "model.safetensors").values())
    for report in (pair, alone):
        assert report.loss_dtype == "float32"
        assert report.quantized.parameters == parameters
        assert 9 < report.sections["memory"].quantized.bits_per_weight < 11
    assert 0 < pair.sections["divergence"].kl.mean < 1e-3
    assert pair.sections["perplexity"].quantized == alone.sections["perplexity"].quantized
    tensors, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.up_proj"
    scale = next(
        tensors[f"{name}.{part}"] for part in ("weight_scale_inv", "weight_scale") if f"{name}.{part}" in tensors
    )
    wanted = tensors[f"{name}.weight"].float() * scale.float()
    found = llmquant.load(folder).get_parameter(f"{name}.weight").float()
    torch.testing.assert_close(found, wanted, rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_fine_tune_in_another_dtype_is_a_candidate(dense: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=dtype)
    with torch.no_grad():
        model.lm_head.weight[3] += 0.01
    folder = shutil.copytree(dense, tmp_path / "tuned")
    model.save_pretrained(folder)
    report = llmquant.evaluate(folder, dense, text=str(dense.parent / "text.txt"), **GIVEN)
    assert 0 < report.sections["divergence"].kl.mean < 1e-3
    assert report.sections["memory"].quantized.bits_per_weight == 8 * dtype.itemsize


@pytest.mark.parametrize(
    ("method", "packages"),
    [
        ("gptq", "optimum gptqmodel"), ("awq", "gptqmodel"), ("bitsandbytes", "bitsandbytes"), ("torchao", "torchao"),
        ("hqq", "hqq"), ("quanto", "optimum-quanto"),
    ],
)  # fmt: skip
def test_a_missing_package_is_named_before_the_baseline_is_loaded(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, packages: str
) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    folder = shutil.copytree(dense, tmp_path / "q")
    _set_config(folder, {"quant_method": method, "bits": 4})
    monkeypatch.setattr(foreign_layers, "version", version)
    monkeypatch.setattr("llmquant.hf.load.load", lambda *_, **__: pytest.fail("a model is loaded"))
    with pytest.raises(CheckpointError, match=f"is quantized by {method}, .*; pip install {packages}$"):
        llmquant.evaluate(folder, dense, text=str(dense.parent / "text.txt"), **GIVEN)


def test_only_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "optimum":
            raise PackageNotFoundError(name)
        return "2.3"

    monkeypatch.setattr(foreign_layers, "version", version)
    with pytest.raises(CheckpointError, match=r"pip install gptqmodel$"):
        check_readers(Path("model"), {"quant_method": "gptq"})
    monkeypatch.setattr(foreign_layers, "version", lambda _: "1")
    check_readers(Path("model"), {"quant_method": "gptq"})
    check_readers(Path("model"), None)


@pytest.mark.parametrize("wrong", [[1], "gptq"])
def test_a_config_that_is_no_object_is_refused(dense: Path, tmp_path: Path, wrong: object) -> None:
    folder = shutil.copytree(dense, tmp_path / "q")
    _set_config(folder, wrong)
    with pytest.raises(CheckpointError, match="wanted an object with quant_method"):
        llmquant.evaluate(folder, text=str(dense.parent / "text.txt"), **GIVEN)


class _Int4(nn.Module):
    """As other libraries keep a weight of (96, 64): two codes in a byte."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(96 * 64 // 2, 1, dtype=torch.uint8), requires_grad=False)


def test_layers_of_another_library_are_never_widened_and_count_what_they_stand_for() -> None:
    from llmquant.models.skeleton import original_weight_count

    plain: Any = tiny_llama()
    model: Any = tiny_llama()
    assert foreign_method(plain) is None
    wanted = original_weight_count(plain)
    model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="bitsandbytes"))
    assert foreign_method(model) is None  # all weights became dense, as fp8 does on a CPU
    assert choose([plain, model], "auto", kernels=False).wide
    model.model.layers[0].mlp.up_proj = _Int4()
    assert foreign_method(model) == "bitsandbytes"
    found = choose([plain, model], "auto", kernels=False)
    assert (found.wide, found.dtype) == (False, "bfloat16")
    assert "layers of bitsandbytes" in found.note
    assert original_weight_count(model) == wanted


def test_no_noise_floor_where_layers_cannot_be_widened() -> None:
    from llmquant.eval.metrics import noise_floor

    model: Any = tiny_llama()
    model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="torchao"))
    model.model.layers[0].mlp.up_proj = _Int4()
    narrow: Any = SimpleNamespace(loss=SimpleNamespace(wide=False), baseline=tiny_llama(), models=(tiny_llama(), model))
    assert noise_floor.measure(narrow, noise_floor.base.NoOptions()) is None
