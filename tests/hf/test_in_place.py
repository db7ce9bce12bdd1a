"""Quantizing a model object, as `llmquant.quantize` does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import llmquant
from llmquant.engine.output.check_folder import verify_folder
from llmquant.errors import LlmquantError
from llmquant.nn.accuracy import kernels_used
from llmquant.progress import Progress
from tests.engine.conftest import byte_tokenizer, save_tiny, tiny_llama

TOKENS = torch.arange(20)[None]


class Seen(Progress):
    """Notes what it was told."""

    def __init__(self) -> None:
        self.steps, self.total, self.layers = 0, 0, 0

    def stage(self, name: str, total: int, **_: Any) -> None:
        self.total = total

    def step(self, detail: str = "", **_: Any) -> None:
        self.steps += 1

    def layer(self, name: str, loss: float) -> None:
        self.layers += 1


@pytest.fixture
def calibrated(tmp_path: Path) -> dict[str, Any]:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{i} times {i + 1} makes {i * (i + 1)}; so it goes on and on." for i in range(200)))
    rules = [{"match": "linear", "scheme": "int4-g32"}]
    data = {"dataset": str(text), "samples": 4, "length": 32}
    return {"version": 1, "name": "mine", "rules": rules, "rounding": {"method": "gptq"}, "calibration": data}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("recipe", ["int4-g32", "int4-g32-full"])
def test_in_place_it_becomes_what_the_folder_holds(tmp_path: Path, recipe: str, tied: bool) -> None:
    tiny_llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "dense")
    dense = llmquant.load(tmp_path / "dense")
    llmquant.quantize(tmp_path / "dense", recipe, tmp_path / "out")
    progress = Seen()
    model = llmquant.quantize(dense, recipe, progress=progress)
    assert model is dense
    assert kernels_used(model)
    assert torch.equal(logits(model), logits(llmquant.load(tmp_path / "out")))
    assert progress.steps == progress.total == 4
    assert progress.layers >= 21
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(llmquant.load(tmp_path / "saved")), logits(model))


def test_calibration_takes_the_tokenizer_that_is_given_or_lies_beside(
    tmp_path: Path, calibrated: dict[str, Any]
) -> None:
    folder = save_tiny(tmp_path / "dense")
    llmquant.quantize(folder, calibrated, tmp_path / "out")
    wanted = logits(llmquant.load(tmp_path / "out"))
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((folder / name).read_bytes())
    given = llmquant.quantize(llmquant.load(tmp_path / "bare"), calibrated, tokenizer=byte_tokenizer())
    beside = llmquant.quantize(llmquant.load(folder), calibrated)
    assert torch.equal(logits(given), wanted)
    assert torch.equal(logits(beside), wanted)


def test_into_a_folder_the_model_stays_as_it_is(tmp_path: Path, calibrated: dict[str, Any]) -> None:
    model, folder = tiny_llama(), save_tiny(tmp_path / "dense")
    before = logits(model)
    result = llmquant.quantize(model, calibrated, tmp_path / "new" / "out", tokenizer=byte_tokenizer())
    assert torch.equal(logits(model), before)
    assert not kernels_used(model)
    assert [path.name for path in result.folder.parent.iterdir()] == ["out"], "something temporary was left"
    assert verify_folder(result.folder).note == ""
    assert result.provenance["source"] == "(LlamaForCausalLM)"
    llmquant.quantize(llmquant.load(folder), calibrated, tmp_path / "beside")
    beside = json.loads((tmp_path / "beside" / "llmquant.json").read_text())
    assert beside["source"] == str(folder.resolve())
    assert beside["tensors"] == result.provenance["tensors"]
    assert (tmp_path / "beside" / "tokenizer.json").exists()
    with pytest.raises(LlmquantError, match="overwrite"):
        llmquant.quantize(model, "int8", result.folder)


def _training() -> Any:
    return tiny_llama().train()


def _on_meta() -> Any:
    model = tiny_llama()
    return torch.nn.Module.to(model, "meta")


def _packed() -> Any:
    return llmquant.quantize(tiny_llama(), "int8")


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (_training, {}, r"training mode.*model\.eval\(\)"),
    (_on_meta, {}, "on the meta device, or offloaded"),
    (_packed, {}, "already quantized"),
    (lambda: nn.Linear(2, 2), {}, "a transformers model, got Linear"),
    (tiny_llama, {"revision": "main"}, "loaded already"),
    (tiny_llama, {"resume": True}, "for a folder"),
    (lambda: "some/model", {}, "name the new folder"),
    (lambda: "some/model", {"out": "x", "tokenizer": "y"}, "has its own"),
]


@pytest.mark.parametrize(("make", "options", "said"), REFUSED)
def test_what_cannot_be_quantized_is_refused(make: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(LlmquantError, match=said):
        llmquant.quantize(make(), "int8", **options)


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_parameter("model.layers.2.mlp.down_proj.weight")[0, 0] = torch.nan
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(LlmquantError, match=r"layers\.2\.mlp\.down_proj"):
        llmquant.quantize(model, "int4-g32")
    assert [name for name, _ in model.named_parameters()] == names
