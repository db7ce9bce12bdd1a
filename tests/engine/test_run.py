"""The streaming run: what is written, that it is what was meant, and that nothing is lost when it fails."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import llmquant
from llmquant.api import quantize
from llmquant.data.calibration import load_calibration
from llmquant.engine.in_memory import quantize_loaded
from llmquant.engine.prepare import load_tokenizer, prepare
from llmquant.errors import CheckpointError, DataError, OutputError, QuantizationError
from llmquant.formats.compressed_tensors import files as shards
from llmquant.formats.compressed_tensors.codec import decode
from llmquant.progress import Progress
from llmquant.recipe.load import load_recipe
from llmquant.spec import Scheme
from tests.engine.kill_resume import check

RTN = {"version": 1, "name": "test", "rules": [{"match": "linear", "scheme": "int4-g32"}]}


def tensors_of(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def weights_and_config(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "llmquant.json"}


def test_the_result_holds_every_tensor_and_only_linears_changed(checkpoint, tmp_path):
    result = quantize(checkpoint, RTN, tmp_path / "out")
    source, written = tensors_of(checkpoint), tensors_of(result.folder)
    quantized = {n.removesuffix(".weight_packed") for n in written if n.endswith(".weight_packed")}
    assert len(quantized) == 3 * 7
    for name, tensor in source.items():
        module = name.removesuffix(".weight")
        if module in quantized:
            dense = decode(module, written, Scheme.parse("int4-g32")).dequantize()
            assert dense.dtype == tensor.dtype
            assert 0 < (dense - tensor).float().norm() / tensor.float().norm() < 0.15
        else:
            assert torch.equal(written[name], tensor)
    config = json.loads((result.folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    ignore = config["quantization_config"]["ignore"]
    assert [pattern.rpartition("?")[2] for pattern in ignore] == ["embed_tokens$", "lm_head$"]
    assert not (tmp_path / "out.partial").exists()
    assert (result.folder / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
    assert result.provenance["verified_tensors"] == len(written)


def test_calibrated_streaming_equals_the_loaded_model(checkpoint, gptq_recipe, tmp_path):
    result = quantize(checkpoint, gptq_recipe, tmp_path / "out")
    prepared = prepare(checkpoint, load_recipe(gptq_recipe))
    assert prepared.plan.recipe.calibration is not None
    data = load_calibration(prepared.plan.recipe.calibration, load_tokenizer(checkpoint))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    in_place = quantize_loaded(model, prepared.plan, data.windows).results
    written = tensors_of(result.folder)
    assert len(in_place) == 21
    for row in prepared.plan.quantized:
        meant, got = in_place[row.module.name].quantized, decode(row.module.name, written, row.scheme)
        assert torch.equal(meant.codes, got.codes)
        assert torch.equal(meant.scales, got.scales)
    layers = result.provenance["layers"]
    assert {layer["method"] for layer in layers.values()} == {"gptq"}
    assert all(0 < layer["loss"] < 0.2 for layer in layers.values())


class Stop(Exception):
    pass


def interrupt_at(monkeypatch, shard):
    original = shards.write_shard
    calls = []

    def failing(path, tensors):
        if len(calls) == shard:
            raise Stop
        calls.append(path)
        original(path, tensors)

    monkeypatch.setattr(shards, "write_shard", failing)


@pytest.mark.parametrize("shard", [0, 1, 2, 3])
@pytest.mark.parametrize("calibrated", [False, True])
def test_resume_is_bit_identical(checkpoint, gptq_recipe, tmp_path, monkeypatch, shard, calibrated):
    recipe = gptq_recipe if calibrated else RTN
    whole = quantize(checkpoint, recipe, tmp_path / "whole").folder
    with monkeypatch.context() as patch:
        interrupt_at(patch, shard)
        with pytest.raises(Stop):
            quantize(checkpoint, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="--resume"):
        quantize(checkpoint, recipe, tmp_path / "out")
    written = []
    with monkeypatch.context() as patch:
        original = shards.write_shard
        patch.setattr(shards, "write_shard", lambda path, t: (written.append(path.name), original(path, t)))
        quantize(checkpoint, recipe, tmp_path / "out", resume=True)
    assert len(written) == 4 - shard  # nothing finished was made again
    assert weights_and_config(tmp_path / "out") == weights_and_config(whole)


def test_resume_refuses_another_recipe_and_another_source(checkpoint, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(Stop):
            quantize(checkpoint, RTN, tmp_path / "out")
    other = {**RTN, "rules": [{"match": "linear", "scheme": "int8"}]}
    with pytest.raises(OutputError, match="different run \\(recipe"):
        quantize(checkpoint, other, tmp_path / "out", resume=True)
    changed = tmp_path / "changed"
    shutil.copytree(checkpoint, changed)
    file = sorted(changed.glob("*.safetensors"))[0]
    tensors = load_file(file)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file, {"format": "pt"})
    with pytest.raises(OutputError, match="different run \\(source"):
        quantize(changed, RTN, tmp_path / "out", resume=True)
    quantize(checkpoint, RTN, tmp_path / "out", resume=True)


def test_a_finished_result_and_foreign_folders_are_not_touched(checkpoint, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for resume, overwrite in ((False, False), (True, False), (False, True)):
        with pytest.raises(OutputError, match="not made by llmquant"):
            quantize(checkpoint, RTN, foreign, resume=resume, overwrite=overwrite)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        quantize(checkpoint, RTN, tmp_path / "file")
    done = quantize(checkpoint, RTN, tmp_path / "out").folder
    before = weights_and_config(done)
    with pytest.raises(OutputError, match="--overwrite"):
        quantize(checkpoint, RTN, done)
    assert quantize(checkpoint, RTN, done, resume=True).folder == done  # already finished: nothing to do
    with pytest.raises(OutputError, match="different run"):
        quantize(checkpoint, {**RTN, "rules": [{"match": "linear", "scheme": "int8"}]}, done, resume=True)
    assert weights_and_config(done) == before
    quantize(checkpoint, {**RTN, "rules": [{"match": "linear", "scheme": "int8"}]}, done, overwrite=True)
    assert weights_and_config(done) != before
    assert {path.name for path in tmp_path.iterdir()} == {"foreign", "file", "out"}


def test_damage_to_a_finished_shard_is_found(checkpoint, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(Stop):
            quantize(checkpoint, RTN, tmp_path / "out")
    shard = tmp_path / "out.partial" / "model-00002-of-00004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 4
    shard.write_bytes(data)
    with pytest.raises(OutputError, match=r"does not decode|differs from the source"):
        quantize(checkpoint, RTN, tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["a code", "cut", "gone"])
def test_no_block_is_calibrated_on_a_damaged_one(checkpoint, gptq_recipe, tmp_path, monkeypatch, damage):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(Stop):
            quantize(checkpoint, gptq_recipe, tmp_path / "out")
    shard = tmp_path / "out.partial" / "model-00002-of-00004.safetensors"
    if damage == "a code":
        tensors = load_file(shard)
        tensors["model.layers.0.mlp.up_proj.weight_packed"][-1, -1] ^= 1
        save_file(tensors, shard, {"format": "pt"})
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        shard.unlink()
    with pytest.raises(OutputError, match=rf"{shard.name}, which an earlier run .*; .* again with --overwrite"):
        quantize(checkpoint, gptq_recipe, tmp_path / "out", resume=True)
    assert not (tmp_path / "out.partial" / "model-00004-of-00004.safetensors").exists()
    quantize(checkpoint, gptq_recipe, tmp_path / "out", overwrite=True)


def test_too_little_disk_is_said_before_any_work(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("llmquant.engine.output.folder.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OutputError, match="free, but"):
        quantize(checkpoint, RTN, tmp_path / "out")
    assert not list((tmp_path / "out.partial").glob("*.safetensors"))


def edited_copy(checkpoint, folder, edit):
    shutil.copytree(checkpoint, folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("calibrated", [False, True])
def test_nan_weights_name_the_module(checkpoint, gptq_recipe, tmp_path, value, calibrated):
    def edit(tensors):
        if (name := "model.layers.1.mlp.up_proj.weight") in tensors:
            tensors[name][3, 5] = value

    bad = edited_copy(checkpoint, tmp_path / "bad", edit)
    with pytest.raises(QuantizationError, match=r"model\.layers\.1\.(mlp\.up_proj|mlp\.down_proj)"):
        quantize(bad, gptq_recipe if calibrated else RTN, tmp_path / "out")


def test_missing_tokenizer_and_short_text(checkpoint, gptq_recipe, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(DataError, match="no tokenizer"):
        quantize(bare, gptq_recipe, tmp_path / "out")
    quantize(bare, RTN, tmp_path / "out")  # data-free: not needed
    short = tmp_path / "short.txt"
    short.write_text("too short")
    recipe = {**gptq_recipe, "calibration": {"dataset": str(short), "samples": 2, "length": 32}}
    with pytest.raises(DataError, match="gives 11 tokens"):
        quantize(checkpoint, recipe, tmp_path / "other")


def test_weights_that_do_not_fit_the_config(checkpoint, gptq_recipe, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match="no tensor for"):
        quantize(copy, RTN, tmp_path / "out")
    (copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(CheckpointError, match="shape"):
        quantize(copy, gptq_recipe, tmp_path / "out")
    with pytest.raises(CheckpointError, match="shape"):
        quantize(copy, RTN, tmp_path / "out2")


class Recorder(Progress):
    """Keeps the stages and the work of their steps."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[int, str, float | None]] = {}
        self.work: dict[str, list[float]] = {}
        self._name = ""

    def stage(self, name: str, total: int, *, unit: str = "steps", work: float | None = None) -> None:
        """Note the stage."""
        self._name = name
        self.stages[name], self.work[name] = (total, unit, work), []

    def step(self, detail: str = "", *, steps: int = 1, work: float | None = None) -> None:
        """Note the step."""
        self.work[self._name].append(steps if work is None else work)


def test_work_adds_up_and_that_of_an_earlier_run_is_none(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = Recorder(), Recorder()
    with monkeypatch.context() as patch:
        patch.setattr("llmquant.engine.run.finalize", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            llmquant.quantize(checkpoint, "int4-g32", tmp_path / "out", progress=first)
    total, unit, work = first.stages["quantize"]
    assert (total, unit) == (4, "shards")
    assert work == sum(first.work["quantize"]) > 4
    llmquant.quantize(checkpoint, "int4-g32", tmp_path / "out", resume=True, progress=again)
    assert again.stages["quantize"] == (4, "shards", 0)
    assert again.work["quantize"] == [0, 0, 0, 0]
    assert again.stages["verify"][1] == "shards"


def test_a_calibrated_block_is_more_work_than_one_that_is_only_rounded(
    checkpoint: Path, gptq_recipe: dict[str, object], tmp_path: Path
) -> None:
    rounded, calibrated = Recorder(), Recorder()
    llmquant.quantize(checkpoint, "int4-g32", tmp_path / "rounded", progress=rounded)
    llmquant.quantize(checkpoint, gptq_recipe, tmp_path / "calibrated", progress=calibrated)
    assert min(calibrated.work["quantize"][1:]) > 10 * max(rounded.work["quantize"])


def test_killed_runs_resume_to_the_same_bytes(checkpoint, gptq_recipe, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(gptq_recipe))
    lines = check(checkpoint, recipe, tmp_path, kills=1, seed=3)
    assert len(lines) == 1
