"""Work on a device: block, inputs, statistics and rounding lie there, and the bytes are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmquant.engine.capture import BlockInputs
from llmquant.engine.in_memory import quantize_loaded
from llmquant.engine.output.folder import read_provenance
from llmquant.engine.prepare import prepare
from llmquant.engine.run import run
from llmquant.recipe.load import load_recipe
from llmquant.statistics import hessian
from tests.engine.conftest import tiny_llama
from tests.engine.stand_in import CARD, OnCard, card


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_two_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with card(monkeypatch) as there:
        moved = torch.arange(3.0).to(there)
        assert (moved + 1).device == CARD
        assert torch.equal((moved + 1).cpu(), torch.arange(1.0, 4))
        assert torch.zeros(2, device=there).device == CARD
        with pytest.raises(RuntimeError, match="operands on lazy"):
            _ = moved + torch.arange(3.0)
        moved += 1
        assert moved.sum().item() == 6


def test_a_calibrated_run(checkpoint, gptq_recipe, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(checkpoint, load_recipe(gptq_recipe))
    run(prepared, tmp_path / "cpu")
    counted, add = [], hessian.Hessian.add
    with card(monkeypatch) as there:
        monkeypatch.setattr(hessian.Hessian, "add", lambda self, rows: (counted.append(rows.device), add(self, rows)))
        run(prepare(checkpoint, load_recipe(gptq_recipe)), tmp_path / "there", device=there)
    assert written(tmp_path / "there") == written(tmp_path / "cpu")
    assert set(counted) == {CARD}


def test_a_data_free_run(checkpoint, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe({"version": 1, "rules": [{"match": "linear", "scheme": "int4-g32-asym"}]})
    run(prepare(checkpoint, recipe), tmp_path / "cpu")
    with card(monkeypatch) as there:
        run(prepare(checkpoint, recipe), tmp_path / "there", device=there)
    assert written(tmp_path / "there") == written(tmp_path / "cpu")


def test_what_stays_behind_is_noticed(checkpoint, gptq_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = BlockInputs.begin
    windows = torch.randint(0, 200, (4, 32))
    prepared = prepare(checkpoint, load_recipe(gptq_recipe))
    with card(monkeypatch) as there:
        monkeypatch.setattr(BlockInputs, "begin", lambda self, base, batch: begin(self, base, batch.cpu()))
        with pytest.raises(RuntimeError, match="operands on lazy"):
            quantize_loaded(tiny_llama(), prepared.plan, windows, there)


def test_results_come_home(checkpoint, gptq_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = torch.randint(0, 200, (4, 32))
    prepared = prepare(checkpoint, load_recipe(gptq_recipe))
    alone = quantize_loaded(tiny_llama(), prepared.plan, windows).results
    with card(monkeypatch) as there:
        moved = quantize_loaded(tiny_llama(), prepared.plan, windows, there).results
    assert alone.keys() == moved.keys()
    for name, result in moved.items():
        assert not isinstance(result.quantized.codes, OnCard)
        assert torch.equal(result.quantized.codes, alone[name].quantized.codes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(checkpoint, gptq_recipe, tmp_path) -> None:
    data_free = load_recipe({"version": 1, "rules": [{"match": "linear", "scheme": "int4-g32-asym"}]})
    calibrated = load_recipe(gptq_recipe)
    for name, recipe in (("rtn", data_free), ("gptq", calibrated)):
        for device in ("cpu", "cuda"):
            run(prepare(checkpoint, recipe), tmp_path / f"{name}-{device}", device=device)
    assert written(tmp_path / "rtn-cuda") == written(tmp_path / "rtn-cpu")
    losses = [
        {layer: facts["loss"] for layer, facts in read_provenance(tmp_path / f"gptq-{device}")["layers"].items()}
        for device in ("cpu", "cuda")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # sums in another order turn a few codes
