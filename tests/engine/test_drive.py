"""Each layer is calibrated on what it will see: the inputs that the quantized blocks before its own produce."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmquant.algorithms import transforms
from llmquant.algorithms.transforms.base import Block
from llmquant.algorithms.tuning import scale_refit
from llmquant.data.calibration import load_calibration
from llmquant.engine import drive as drive_module
from llmquant.engine.capture import BlockInputs
from llmquant.engine.in_memory import quantize_loaded
from llmquant.engine.output.folder import read_provenance
from llmquant.engine.prepare import load_tokenizer, prepare
from llmquant.engine.run import run
from llmquant.hf.recipe import RecipeConfig
from llmquant.models.edits import apply_edits
from llmquant.models.skeleton import decoder_blocks
from llmquant.recipe.load import load_recipe
from llmquant.statistics import hessian
from tests.engine.conftest import tiny_llama
from tests.engine.stand_in import CARD, OnCard, card


@torch.no_grad()
def hessians(model, names: list[str], windows: Tensor) -> dict[str, Tensor]:
    """X^T X / tokens of these layers in a forward of the whole model, in float64."""
    found: dict[str, Tensor] = {}

    def hook(name: str):
        def remember(_module, args) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).double()
            found[name] = x.T @ x / len(x)

        return remember

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    model.base_model(input_ids=windows, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def test_statistics_come_from_behind_the_quantized_blocks(checkpoint, gptq_recipe, monkeypatch: pytest.MonkeyPatch):
    rules = [{"match": "linear", "scheme": "int2-g32"}]
    prepared = prepare(checkpoint, load_recipe({**gptq_recipe, "rules": rules}))
    assert prepared.plan.recipe.calibration is not None
    windows = load_calibration(prepared.plan.recipe.calibration, load_tokenizer(checkpoint)).windows
    seen = {}
    quantize_layer = drive_module.quantize_layer

    def spy(row, weight, statistics, scale_dtype):
        seen[row.module.name] = statistics.values["hessian"].double()
        return quantize_layer(row, weight, statistics, scale_dtype)

    monkeypatch.setattr(drive_module, "quantize_layer", spy)
    results = quantize_loaded(tiny_llama(), prepared.plan, windows).results

    twin = tiny_llama().float()
    path, blocks = decoder_blocks(twin)
    inner = list(dict.fromkeys(name.split(f"{path}.0.", 1)[1] for name in results if f"{path}.0." in name))
    original = hessians(twin, list(results), windows)
    for index in range(len(blocks)):
        names = [f"{path}.{index}.{name}" for name in inner]
        true = hessians(twin, names, windows)
        for name in names:
            torch.testing.assert_close(seen[name], true[name], rtol=1e-3, atol=1e-5)
            if index:  # 2 bits leave little of the original inputs
                assert (seen[name] - original[name]).norm() > 0.05 * original[name].norm()
        for name in names:
            twin.get_submodule(name).weight.data = results[name].quantized.dequantize().float()


@torch.no_grad()
def behind_blocks(model, windows: Tensor) -> list[Tensor]:
    """What each block returns in a forward of the whole model."""
    seen: list[Tensor] = []
    handles = [block.register_forward_hook(lambda *a: seen.append(a[2])) for block in decoder_blocks(model)[1]]
    model.base_model(input_ids=windows, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("stopped_after", [0, 2])
def test_tuning_aims_at_the_original_model(
    checkpoint, gptq_recipe, tmp_path, stopped_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind rounded blocks and rounded embeddings, and in a run that goes on, too."""
    rules = [{"match": "linear", "scheme": "int2-g32"}, {"match": "embedding", "scheme": "int2-g32", **RTN}]
    recipe = load_recipe({**gptq_recipe, "rules": rules, "tuning": [{"method": "scale_refit", "steps": 1}]})
    assert recipe.calibration is not None
    windows = load_calibration(recipe.calibration, load_tokenizer(checkpoint)).windows
    seen, tune = [], scale_refit.tune

    def spy(block, calls, targets, layers, options):
        nonlocal stopped_after
        if len(seen) == stopped_after:
            stopped_after = -1
            raise KeyError("stopped")
        seen.append((torch.cat([call(block) for call in calls]), torch.cat(list(targets))))
        return tune(block, calls, targets, layers, options)

    monkeypatch.setattr(scale_refit, "tune", spy)
    with pytest.raises(KeyError, match="stopped"):
        run(prepare(checkpoint, recipe), tmp_path / "out")
    run(prepare(checkpoint, recipe), tmp_path / "out", resume=True)
    wanted = behind_blocks(tiny_llama().float(), windows)
    assert len(seen) == len(wanted) == 3
    for (output, target), original in zip(seen, wanted, strict=True):
        torch.testing.assert_close(target, original, rtol=1e-3, atol=1e-5)
        assert (output - original).norm() > 0.1 * original.norm()  # 2 bits leave little of it


RTN = {"rounding": {"method": "rtn"}}


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


@pytest.mark.parametrize("seed", [0, 11])
def test_results_come_home(checkpoint, gptq_recipe, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = torch.randint(0, 200, (4, 32), generator=torch.Generator().manual_seed(seed))
    prepared = prepare(checkpoint, load_recipe(gptq_recipe))
    alone = quantize_loaded(tiny_llama(), prepared.plan, windows).results
    with card(monkeypatch) as there:
        moved = quantize_loaded(tiny_llama(), prepared.plan, windows, there).results
    assert alone.keys() == moved.keys()
    for name, result in moved.items():
        assert not isinstance(result.quantized.codes, OnCard)
        assert torch.equal(result.quantized.codes, alone[name].quantized.codes)
        assert result.loss == alone[name].loss  # which tells of the last bit of a Hessian, where codes rarely do


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


def equalized_by_hand(checkpoint: Path, equalize: str, folder: Path) -> Path:
    """A copy of the checkpoint that a transform without data has rewritten, outside the engine."""
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    model, wide = tiny_llama(), tiny_llama().float()
    path, blocks = decoder_blocks(wide)
    method = transforms.find(equalize)
    for index, block in enumerate(blocks):
        edits = method.fit(Block(f"{path}.{index}", block), {}, method.Options())
        assert edits
        apply_edits(model, edits)
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_transform_without_data(checkpoint, gptq_recipe, equalize, tmp_path, calibrated: bool) -> None:
    plain = gptq_recipe if calibrated else {"version": 1, "rules": [{"match": "linear", "scheme": "int4-g32"}]}
    recipe = load_recipe({**plain, "transforms": [{"method": equalize}]})
    assert recipe.calibrated == (("gptq",) if calibrated else ())
    out = run(prepare(checkpoint, recipe), tmp_path / "out").folder
    by_hand = equalized_by_hand(checkpoint, equalize, tmp_path / "by_hand")
    meant = run(prepare(by_hand, load_recipe(plain)), tmp_path / "meant").folder
    got, wanted = written(out), written(meant)
    untouched = written(run(prepare(checkpoint, load_recipe(plain)), tmp_path / "untouched").folder)
    assert got == wanted
    assert got != untouched


def test_a_transform_without_data_in_a_model_in_memory(checkpoint, equalize, tmp_path) -> None:
    recipe = {"version": 1, "rules": [{"match": "linear", "scheme": "int4-g32"}], "transforms": [{"method": equalize}]}
    out = run(prepare(checkpoint, load_recipe(recipe)), tmp_path / "out").folder
    config = RecipeConfig(recipe, device="cpu")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", quantization_config=config)
    model.save_pretrained(tmp_path / "saved")
    found = [
        {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        for folder in (out, tmp_path / "saved")
    ]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
