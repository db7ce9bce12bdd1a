"""`llmquant.evaluate` from folder to report: packed baselines, and what is refused before a model is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import llmquant
from llmquant.errors import LlmquantError
from llmquant.eval.metrics.anatomy import Section as Anatomy
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.memory import Section as Memory
from llmquant.eval.report import render_page
from llmquant.eval.result import EvalReport
from llmquant.nn.accuracy import kernels_used
from tests.engine.conftest import save_tiny, tiny_llama
from tests.eval.conftest import Seen
from tests.small_hub import environment, serve

SMALL = {
    "version": 1,
    "name": "small",
    "portable": False,
    "rules": [
        {"match": "linear", "scheme": "int4-g32"},
        {"match": ["embedding", "lm_head"], "scheme": "int8"},
    ],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "model"
    save_tiny(folder)
    (folder.parent / "text.txt").write_text("\n".join(f"line {i} of a text with windows enough" for i in range(60)))
    return folder


@pytest.fixture(scope="module")
def packed(model: Path) -> Path:
    return llmquant.quantize(model, SMALL, model.parent / "packed").folder


def evaluate(model: Path, baseline: Path, **options: Any) -> EvalReport:
    given: dict[str, Any] = {"text": str(baseline.parent / "text.txt"), "length": 32, "speed": 0.0}
    return llmquant.evaluate(model, baseline, **(given | options))


@pytest.mark.parametrize("same", [True, False])
def test_a_packed_baseline_counts_its_weights(model: Path, packed: Path, same: bool) -> None:
    """Against another packed model, such as an earlier recipe's."""
    other = packed
    if not same:
        other = packed.with_name("int8")
        llmquant.quantize(model, "int8", other, overwrite=True)
    report = evaluate(other, packed)
    assert report.baseline
    assert report.baseline.parameters == report.quantized.parameters == tiny_llama().num_parameters()
    before = report[Memory].baseline
    bits = before and before.bits_per_weight
    assert bits is not None
    assert 4 < bits < 9
    assert (report[Divergence].kl.mean == 0.0) == same
    anatomy = report[Anatomy].baseline
    schemes = {part.scheme for part in anatomy}
    assert {"int4-g32", "int8"} <= schemes
    assert sum(part.bytes for part in anatomy) < tiny_llama().num_parameters() * 9 / 8
    assert "Where the bytes are" in render_page([report])


REFUSED = [
    ({"budget": {"klx": 1.0}}, "unknown budget 'klx'"),
    ({"budget": {"kl": float("nan")}}, "positive number"),
    ({"budget": {"kl": 0.0}}, "positive number"),
    ({"length": 65}, "exceed the model's context of 64"),
    ({"text": "nowhere.txt"}, "no text file"),
    ({"stride": 99}, "stride must lie"),
    ({"speed": -1.0}, "0 or more"),
    ({"speed": float("nan")}, "finite number"),
    ({"device": "cuda:99"}, "no device 'cuda:99' here"),
    ({"metrics": {"speeed": True}}, "did you mean 'speed'"),
    ({"dtype": "float17"}, "unknown dtype 'float17'; give one of auto"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_can_be_refused_is_refused_before_a_model_is_loaded(
    model: Path, packed: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("llmquant.hf.load.load", load)
    with pytest.raises(LlmquantError, match=message):
        evaluate(packed, model, **options)


def test_both_folders_are_opened_before_a_model_is_loaded(
    model: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmquant.hf.load.load", lambda *_, **__: pytest.fail("a model was loaded"))
    unfinished = tmp_path / "out.partial"
    unfinished.mkdir()
    (unfinished / "journal.jsonl").write_text("")
    for folder, message in ((tmp_path / "absent", "no such folder"), (tmp_path / "out", "--resume")):
        with pytest.raises(LlmquantError, match=message):
            evaluate(folder, model)
        with pytest.raises(LlmquantError, match=message):
            evaluate(packed, folder, text=str(model.parent / "text.txt"))


def test_both_models_are_loaded_where_they_were_asked_to_be(
    model: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def load(*_: object, device_map: object, **__: object) -> object:
        seen.append(device_map)
        return tiny_llama()

    monkeypatch.setattr("llmquant.hf.load.load", load)
    evaluate(packed, model, device="cpu")
    monkeypatch.setattr("llmquant.compare.resolve_device", lambda name: torch.device(f"{name}:1"))
    evaluate(packed, model, device="xpu")
    assert seen == [None, None, {"": "xpu:1"}, {"": "xpu:1"}]


@pytest.mark.gpu
def test_a_gpu_finds_the_loss_of_the_cpu(model: Path, packed: Path) -> None:
    there, here = (evaluate(packed, model, device=device, dtype="float32") for device in ("cuda", "cpu"))
    assert there.machine["device"] != "cpu"
    assert there[Divergence].kl.mean == pytest.approx(here[Divergence].kl.mean, rel=1e-3)


HUB_USER = """
import sys, llmquant
planned = llmquant.plan("tiny/planned", "int4-g32")
print("planned", planned.bytes_after)
made = llmquant.quantize("tiny/model", "int4-g32", sys.argv[1])
report = llmquant.evaluate(sys.argv[1], "tiny/model", text=sys.argv[2], length=32, speed=0)
sections = report.sections
print(report.baseline.name, sections["memory"].baseline.checkpoint_bytes, sections["divergence"].kl.mean)
print(llmquant.evaluate("tiny/packed", "tiny/model", text=sys.argv[2], length=32, speed=0).name)
"""


def test_hub_ids_do_as_folders_do(model: Path, packed: Path, tmp_path: Path) -> None:
    files = {f"tiny/{name}": {file.name: file.read_bytes() for file in folder.iterdir()}
             for name, folder in (("model", model), ("planned", model), ("packed", packed))}  # fmt: skip
    asked: list[str] = []
    with serve(files, asked) as endpoint:
        command = [sys.executable, "-c", HUB_USER, str(tmp_path / "out"), str(model.parent / "text.txt")]
        settings = environment(endpoint, tmp_path / "home")
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    report = evaluate(tmp_path / "out", model)
    size = (model / "model.safetensors").stat().st_size
    made = llmquant.plan(model, "int4-g32").bytes_after
    wanted = [f"planned {made}", f"model {size} {report[Divergence].kl.mean}", "small"]
    assert done.stdout.splitlines() == wanted
    assert [file for file in asked if file.startswith("tiny/planned/")] == ["tiny/planned/config.json"]
    assert "tiny/model/model.safetensors" in asked


def test_progress_has_totals_from_the_start(model: Path, packed: Path) -> None:
    seen = Seen()
    report = evaluate(packed, model, progress=seen, noise_floor=True, dtype="checkpoint")
    assert [name for name, *_ in seen.stages] == ["load", "noise floor", "noise floor", "score"]
    assert all(sum(steps) == total for _, total, steps in seen.stages)
    assert seen.stages[3][1] == report.protocol.windows


@pytest.mark.parametrize(
    ("dtype", "loss", "computed"),
    [("auto", "float32", "bfloat16"), ("checkpoint", "bfloat16", "bfloat16"), ("float32", "float32", "float32")],
)
def test_dtype_is_that_of_the_loss(model: Path, packed: Path, dtype: str, loss: str, computed: str) -> None:
    report = evaluate(packed, model, dtype=dtype)
    assert report.baseline
    assert (report.loss_dtype, report.baseline.dtype, report.quantized.dtype) == (loss, computed, computed)


def test_folders_run_in_a_pipeline(model: Path, packed: Path, tmp_path: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model, quantization_config=llmquant.RecipeConfig("int4-g32"))
    loaded.save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "saved")
    said = []
    for folder in (packed, tmp_path / "saved"):
        generate: Any = pipeline("text-generation", model=str(folder))
        assert kernels_used(generate.model)
        said.append(generate("a line", max_new_tokens=4, do_sample=False)[0]["generated_text"])
    assert said[0].startswith("a line")
    assert len(said[0]) > len("a line")
