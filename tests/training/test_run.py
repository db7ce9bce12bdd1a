"""From a checkpoint and text to a finished folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import llmquant
from llmquant.engine import drive
from llmquant.engine.output.check_folder import verify_folder
from llmquant.errors import CheckpointError, DataError, OutputError, PlanError, QuantizationError, RecipeError
from llmquant.hub.model import origin_of
from llmquant.progress import Progress
from llmquant.training import run as module
from llmquant.training.arguments import Options
from llmquant.training.run import qat
from tests.engine.conftest import save_tiny
from tests.training.conftest import recipe

pytestmark = pytest.mark.usefixtures("reference_kernels")


def options(**changes: Any) -> dict[str, Any]:
    """Of a run of eight steps of four rows, with four checkpoints."""
    section = {"length": 24, "batch": 4, "steps": 8, "learning_rate": 0.2, "loss": {"cross_entropy": 1.0}}
    return recipe(**(section | changes))


class Notes(Progress):
    """Keeps them; kills the process at a step."""

    def __init__(self, killed_at: int = 0) -> None:
        self.notes: list[str] = []
        self.losses: list[float] = []
        self.steps, self.killed_at, self.training = 0, killed_at, False

    def note(self, text: str) -> None:
        self.notes.append(text)

    def loss(self, value: float) -> None:
        self.losses.append(value)

    def stage(self, name: str, total: int, *, unit: str = "steps", work: float | None = None) -> None:
        self.steps, self.training = 0, name == "train"

    def step(self, detail: str = "", *, steps: int = 1, work: float | None = None) -> None:
        self.steps += steps
        if self.killed_at and self.training and self.steps >= self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("qat") / "dense")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(f"{i} times {i + 1} makes {i * (i + 1)}; so it goes on and on." for i in range(60)))
    return str(path)


def run(source: Path, text: str, out: Path, changes: dict[str, Any] | None = None, **more: Any) -> Any:
    return qat(source, options(**(changes or {})), text, out, device="cpu", **more)


@pytest.fixture(scope="module")
def finished(source: Path, text: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Notes]:
    notes, out = Notes(), tmp_path_factory.mktemp("finished") / "out"
    return run(source, text, out, options=Options(save_steps=2), progress=notes), notes


def test_rounding_that_was_killed_goes_on(
    finished: tuple[Any, Notes], source: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded, quantize_layer = [], drive.quantize_layer

    def count(row: Any, *more: Any) -> Any:
        if len(rounded) == 16:  # of three blocks of seven
            raise KeyboardInterrupt
        rounded.append(row.name)
        return quantize_layer(row, *more)

    monkeypatch.setattr(drive, "quantize_layer", count)
    with pytest.raises(KeyboardInterrupt):
        run(source, text, tmp_path / "out", options=Options(save_steps=2))
    rounded.clear()
    result = run(source, text, tmp_path / "out", options=Options(save_steps=2), resume=True)
    assert len(rounded) == 7
    one, other = ((folder / "model.safetensors").read_bytes() for folder in (result.folder, finished[0].folder))
    assert one == other


def test_a_finished_folder_that_verifies_and_says_how_it_was_trained(finished: tuple[Any, Notes], text: str) -> None:
    result, notes = finished
    verified = verify_folder(result.folder)
    assert verified.digests == verified.tensors > 30
    assert not verified.note
    names = sorted(path.name for path in result.folder.iterdir())
    assert not [name for name in names if name.startswith(("journal", "training", "checkpoint"))]
    assert {"tokenizer.json", "config.json", "llmquant.json"} < set(names)
    config = json.loads((result.folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["use_cache"]
    facts = result.provenance["training"]
    assert facts["text"] == text
    assert facts["steps"] == 8
    assert facts["tokens"] == 8 * 4 * 24
    assert facts["loss_after"] < facts["loss_before"]
    assert (facts["windows"], facts["valid_windows"]) == (8 * 4, 2)
    assert [entry["step"] for entry in facts["log"] if "loss" in entry] == list(range(1, 9))
    assert "codes_flipped" in facts["log"][0]
    assert len(notes.losses) == 8
    assert notes.notes[0].startswith("before training: loss")
    assert notes.notes[-1].startswith("step 8 of 8: loss")
    assert result.provenance["recipe"]["qat"]["steps"] == 8
    assert result.provenance["layers"]
    loaded: Any = llmquant.load(result.folder, verify=True)
    assert origin_of(loaded) == result.provenance
    tokens = torch.arange(20)[None]
    plain = AutoModelForCausalLM.from_pretrained(result.folder)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, plain(tokens).logits)


def test_the_best_on_held_out_text_is_kept(source: Path, text: str, tmp_path: Path) -> None:
    notes = Notes()
    wild = {"learning_rate": 1.0, "scale_learning_rate": 0.5, "steps": 4, "warmup": 0.0, "loss": {}}
    facts = run(source, text, tmp_path / "out", wild, options=Options(save_steps=1), progress=notes)
    facts = facts.provenance["training"]
    measured = {entry["step"]: entry["eval_loss"] for entry in facts["log"] if "eval_loss" in entry}
    assert sorted(measured) == [1, 2, 3, 4]
    assert facts["best_step"] == min(measured, key=measured.__getitem__)
    assert facts["loss_after"] == min(measured.values())
    assert any("training did not help" in note for note in notes.notes)


KILLED = """
import sys, torch
from pathlib import Path
from tests.training.test_run import Notes, Options, options, qat
torch.set_num_threads(1)
source, text, out = sys.argv[1:]
qat(source, options(), text, out, device="cpu", options=Options(save_steps=2), progress=Notes(5))
"""


def test_killed_and_resumed_gives_the_same_bytes(finished: tuple[Any, Notes], source: Path, text: str) -> None:
    whole, _ = finished
    out = whole.folder.with_name("killed")
    threads = torch.get_num_threads()
    environment = os.environ | {"LLMQUANT_CPU_KERNELS": "reference", "OMP_NUM_THREADS": str(threads)}
    code = KILLED.replace("set_num_threads(1)", f"set_num_threads({threads})")
    killed = subprocess.run([sys.executable, "-c", code, str(source), text, str(out)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    training = out.with_name("killed.partial") / "training"
    assert (training / "checkpoint-4").is_dir()
    torn = shutil.copytree(
        training / "checkpoint-4", training / "checkpoint-6"
    )  # as a machine that went down leaves it
    state = torn / "trainer_state.json"
    state.write_text(state.read_text().replace('"global_step": 4', '"global_step": 6'))
    (torn / "optimizer.pt").write_bytes((torn / "optimizer.pt").read_bytes()[:1000])
    with pytest.raises(OutputError, match="--resume"):
        run(source, text, out)
    with pytest.raises(OutputError, match="begun by a different run"):
        run(source, text, out, {"steps": 7}, options=Options(save_steps=2), resume=True)
    notes = Notes()
    result = run(source, text, out, options=Options(save_steps=2), resume=True, progress=notes)
    assert notes.steps == 4 + 4
    wanted, found = (load_file(each.folder / "model.safetensors") for each in (whole, result))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert result.provenance["identity"] == whole.provenance["identity"]
    assert result.provenance["training"] == whole.provenance["training"]
    assert run(source, text, out, options=Options(save_steps=2), resume=True).provenance == result.provenance
    with pytest.raises(OutputError, match="finished result"):
        run(source, text, out)


def test_killed_after_its_last_step_it_only_writes(finished: tuple[Any, Notes], source: Path, text: str) -> None:
    whole, _ = finished
    out = whole.folder.with_name("ended")
    full = shutil.disk_usage(out.parent)._replace(free=1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmquant.training.run.write_result", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
        with pytest.raises(OutputError, match=r"cannot write to .*No space.*--resume"):
            run(source, text, out, options=Options(save_steps=2))
        patch.setattr("shutil.disk_usage", lambda _: full)
        with pytest.raises(OutputError, match="are still to be written"):
            run(source, text, out, options=Options(save_steps=2), resume=True)
    notes = Notes()
    result = run(source, text, out, options=Options(save_steps=2), resume=True, progress=notes)
    assert not notes.training
    assert result.provenance["tensors"] == whole.provenance["tensors"]


def test_static_inputs_and_ranges_that_follow(source: Path, text: str, tmp_path: Path) -> None:
    changes = {"scheme": "w8a8-static", "ranges": "moving-average", "steps": 2, "freeze_after": 0.5}
    verify_folder(run(source, text, tmp_path / "out", changes).folder)


def test_low_rank_changes_move_codes(source: Path, text: str, tmp_path: Path) -> None:
    changes = {"lora": {"rank": 4, "alpha": 8.0}, "steps": 3, "learning_rate": 1.0}
    result = run(source, text, tmp_path / "out", changes)
    assert verify_folder(result.folder).digests
    assert [entry["codes_flipped"] for entry in result.provenance["training"]["log"] if "loss" in entry][-1] > 0.1


def test_another_text_for_calibration(source: Path, text: str, tmp_path: Path) -> None:
    mine = options(steps=1) | {"rounding": {"method": "gptq"}, "calibration": {"samples": 2, "length": 24}}
    facts = qat(source, mine, text, tmp_path / "out", device="cpu", calibration=text).provenance
    assert facts["recipe"]["calibration"]["dataset"] == text
    with pytest.raises(RecipeError, match="uses no calibration text"):
        run(source, text, tmp_path / "none", calibration=text)


def test_quantize_trains_what_names_its_text(source: Path, text: str, tmp_path: Path) -> None:
    mine = options(steps=2, text="calibration") | {"calibration": {"dataset": text, "samples": 2, "length": 24}}
    mine["rounding"] = {"method": "gptq"}
    trained = llmquant.quantize(source, mine, tmp_path / "out", device="cpu")
    facts = trained.provenance["training"]
    assert facts["text"] == text
    assert facts["steps"] == 2
    by_name = qat(source, mine, text, tmp_path / "named", device="cpu")
    assert (trained.folder / "model.safetensors").read_bytes() == (by_name.folder / "model.safetensors").read_bytes()
    other = tmp_path / "other.txt"
    other.write_text(Path(text).read_text()[::-1])
    both = llmquant.quantize(source, mine, tmp_path / "both", device="cpu", calibration=str(other)).provenance
    assert both["training"]["text"] == both["recipe"]["calibration"]["dataset"] == str(other)


def test_a_text_has_to_be_named_somewhere(source: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'mine' names no text to train on: give one \(--train\)"):
        qat(source, options(), None, tmp_path / "out", device="cpu")


def test_rounding_that_begins_later_is_measured_from_then_on(source: Path, text: str, tmp_path: Path) -> None:
    changes = {"steps": 4, "fake_quant_after_n_steps": 3, "loss": {"kl": 1.0}}
    facts = run(source, text, tmp_path / "out", changes, options=Options(save_steps=1)).provenance["training"]
    assert [entry["step"] for entry in facts["log"] if "eval_loss" in entry] == [3, 4]
    assert facts["loss_before"] > 0  # that of the rounded model


def test_bad_input(source: Path, text: str, tmp_path: Path) -> None:
    out, short, empty = tmp_path / "out", tmp_path / "short.txt", tmp_path / "empty.txt"
    short.write_text("so it goes on and on")
    empty.write_text(" \n")
    with pytest.raises(RecipeError, match="does not train"):
        qat(source, "int4-g32", text, out)
    with pytest.raises(DataError, match="shorter than one window"):
        run(source, str(short), out)
    with pytest.raises(DataError, match="one more is needed to hold out"):
        run(source, str(short), out, {"length": 18})
    with pytest.raises(DataError, match="holds no text"):
        run(source, str(empty), out)
    with pytest.raises(DataError, match="shorter than one window"):
        run(source, text, out, valid=str(short))
    with pytest.raises(PlanError, match="nothing would be quantized"):
        run(source, text, out, {"scheme": "keep"})
    with pytest.raises(RecipeError, match="cannot be divided"):
        run(source, text, out, options=Options(per_device=3))
    with pytest.raises(RecipeError, match="would be ignored"):
        run(source, text, out, {"loss": {"kl": 0.0, "cross_entropy": 1.0}}, teacher=source)
    with pytest.raises(RecipeError, match="all 8 steps would train weights that are not rounded"):
        run(source, text, out, {"fake_quant_after_n_steps": 8})
    with pytest.raises(CheckpointError, match="nowhere"):
        run(tmp_path / "nowhere", text, out)
    for steps in (0, -1):
        with pytest.raises(RecipeError, match=f"steps is {steps}; give at least 1"):
            run(source, text, out, steps=steps)
    with pytest.raises(RecipeError, match="per_device is -2; give at least 1"):
        Options(per_device=-2)
    with pytest.raises(RecipeError, match="save_steps is 0"):
        Options(save_steps=0)
    assert not out.exists()
    assert not out.with_name("out.partial").exists()


@pytest.mark.parametrize("whose", ["model", "teacher"])
def test_numbers_that_are_none_from_the_start_are_no_divergence(
    source: Path, text: str, tmp_path: Path, whose: str
) -> None:
    damaged = shutil.copytree(source, tmp_path / "damaged")
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
    model, teacher = (damaged, None) if whose == "model" else (source, damaged)
    with pytest.raises(CheckpointError, match=rf"of the {whose}, model\.norm\.weight is not finite; repair"):
        run(model, text, tmp_path / "out", teacher=teacher)
    with pytest.raises(QuantizationError, match=r"before training is inf.*qat\.loss"):
        run(source, text, tmp_path / "other", {"loss": {"cross_entropy": 1e300}})


def test_one_step_is_a_step(source: Path, text: str, tmp_path: Path) -> None:
    facts = run(source, text, tmp_path / "out", {"steps": 1, "learning_rate": 1.0}).provenance["training"]
    assert facts["log"][0]["codes_flipped"] > 0


def test_a_teacher_of_other_tokens(source: Path, text: str, tmp_path: Path) -> None:
    other = shutil.copytree(source, tmp_path / "other")
    tokenizer = (other / "tokenizer.json").read_text(encoding="utf-8")
    words = json.loads(tokenizer)
    words["model"]["vocab"]["a"], words["model"]["vocab"]["b"] = (
        words["model"]["vocab"]["b"],
        words["model"]["vocab"]["a"],
    )
    (other / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    with pytest.raises(DataError, match=r"another tokenizer: '[ab]' is token .* and 1 more differ"):
        run(source, text, tmp_path / "out", teacher=other)
    (other / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    result = run(source, text, tmp_path / "out", {"steps": 1}, teacher=other)
    assert result.provenance["training"]["teacher"] == str(other)


class Spoil(Notes):
    """Lets a scale overflow after the third step."""

    model: Any = None

    def loss(self, value: float) -> None:
        super().loss(value)
        if len(self.losses) == 3:
            self.model.model.layers[0].mlp.up_proj.weight_scale_change.data[0, 0] = 1000.0


def test_what_diverges_keeps_its_checkpoints(
    source: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, made = Spoil(), module.make_trainer

    def remember(model: Any, *more: Any) -> Any:
        spoil.model = model
        return made(model, *more)

    monkeypatch.setattr(module, "make_trainer", remember)
    with pytest.raises(QuantizationError, match=r"step 4: .*scales of model\.layers\.0\.mlp\.up_proj .*checkpoint-2"):
        run(source, text, tmp_path / "out", options=Options(save_steps=2), progress=spoil)
    assert (tmp_path / "out.partial/training/checkpoint-2/trainer_state.json").exists()
