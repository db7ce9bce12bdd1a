"""Losses in float32: the stored weights as readers see them, without the noise of 16-bit arithmetic."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import llmquant
from llmquant.data.windows import Windows, make_windows
from llmquant.errors import DataError
from llmquant.eval import precision
from llmquant.eval.metrics.noise_floor import check_noise_floor, rounding_kl
from llmquant.eval.precision import choose, in_float32, widening_bytes
from tests.engine.conftest import byte_tokenizer, tiny_llama
from tests.eval.conftest import Seen, compare

FULL = {
    "version": 1,
    "portable": False,
    "rules": [
        {"match": "linear", "scheme": "int8"},
        {"match": ["embedding", "lm_head"], "scheme": "int8"},
    ],
}
RECIPES: dict[str, Any] = {
    "int8": {"version": 1, "rules": [{"match": "linear", "scheme": "int8"}]},
    "packed table": FULL,
    "w8a8": {"version": 1, "rules": [{"match": "linear", "scheme": "w8a8-dynamic"}]},
}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dtypes") / "model"
    tiny_llama(tie_word_embeddings=request.param).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def windows() -> Windows:
    text = " ".join(f"line {i} of some text" for i in range(40))
    return make_windows([text], byte_tokenizer(), source="t", length=32, max_windows=9)


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", RECIPES)
def test_float32_is_that_of_the_dequantized_model(model: Path, windows: Windows, tmp_path: Path, name: str) -> None:
    folder = llmquant.quantize(model, RECIPES[name], tmp_path / "out").folder
    baseline, packed = llmquant.load(model), llmquant.load(folder)
    before, kernels = snapshot(packed), [type(module) for module in packed.modules()]
    narrow = compare(baseline, packed, windows).divergence
    with in_float32(baseline), in_float32(packed):
        wide = compare(baseline, packed, windows).divergence
    if name != "w8a8":  # its activations are quantized, which dense weights do not show
        dense = llmquant.load(folder, packed=False).float()
        with in_float32(baseline):
            assert compare(baseline, dense, windows).divergence == wide
    assert wide.kl.mean < narrow.kl.mean  # the rest was rounding
    after = snapshot(packed)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    assert [type(module) for module in packed.modules()] == kernels
    assert compare(baseline, packed, windows).divergence == narrow


@pytest.mark.usefixtures("reference_kernels")
def test_scales_of_layers_without_kernels_stay_as_stored(model: Path, windows: Windows, tmp_path: Path) -> None:
    folder = llmquant.quantize(model, RECIPES["int8"], tmp_path / "out").folder
    packed, dense = llmquant.load(folder), llmquant.load(folder, packed=False).float()
    with in_float32(packed):
        assert compare(dense, packed, windows).divergence.kl.mean == 0.0


def test_models_are_as_they_were_after_an_error(model: Path) -> None:
    loaded = llmquant.load(model)
    before = snapshot(loaded)

    def fail() -> None:
        with in_float32(loaded):
            assert loaded.dtype == torch.float32
            assert torch.get_float32_matmul_precision() == "highest"
            raise ZeroDivisionError

    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ZeroDivisionError):
            fail()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(before[key], tensor) for key, tensor in loaded.state_dict().items())
    assert loaded.dtype == torch.bfloat16


def test_float32_is_chosen_where_it_fits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = llmquant.load(model), llmquant.load(model)
    needed = sum(map(widening_bytes, pair))
    assert needed == 2 * 2 * pair[0].num_parameters()
    assert choose(pair, "auto", kernels=False).dtype == "float32"
    assert choose(pair, "checkpoint", kernels=False).dtype == "bfloat16"
    monkeypatch.setattr(precision, "free_bytes", lambda _: needed)
    chosen = choose(pair, "auto", kernels=False)
    assert (chosen.wide, chosen.dtype) == (False, "bfloat16")
    assert "float32 needs" in chosen.note
    monkeypatch.setattr(precision, "free_bytes", lambda _: 10)
    with pytest.raises(DataError, match="leave it out"):
        check_noise_floor(*pair)


def test_noise_floor_has_both_sides_on_the_same_windows(model: Path, windows: Windows, tmp_path: Path) -> None:
    """16-bit KL of an 8-bit model is its own plus what rounding adds on either side."""
    baseline = llmquant.load(model)
    quantized = llmquant.load(llmquant.quantize(model, RECIPES["int8"], tmp_path / "out").folder)
    seen = Seen()
    floor = sum(rounding_kl(each, windows, seen) for each in (baseline, quantized))
    assert [(total, sum(steps)) for _, total, steps in seen.stages] == [(len(windows), len(windows))] * 2
    sides = []
    for each in (baseline, quantized):
        wide = copy.deepcopy(each)
        with in_float32(wide):
            sides.append(compare(wide, each, windows).divergence.kl.mean)
    assert floor == pytest.approx(sum(sides), rel=1e-9)
    narrow = compare(baseline, quantized, windows).divergence.kl.mean
    with in_float32(baseline), in_float32(quantized):
        wide_kl = compare(baseline, quantized, windows).divergence.kl.mean
    assert wide_kl + floor == pytest.approx(narrow, rel=0.3)
