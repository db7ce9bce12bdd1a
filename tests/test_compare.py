"""Several candidates against one baseline: one pass of the baseline, the numbers of each alone, and their names."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import llmquant
from llmquant.cli.main import main
from llmquant.compare import _store, file_names
from llmquant.errors import DataError, OutputError, RecipeError
from llmquant.eval import EvalOptions, Subject
from llmquant.eval.pair import Facts
from llmquant.eval.report import render_page
from llmquant.eval.result import EvalReport
from tests.engine.conftest import save_tiny, tiny_llama
from tests.eval.conftest import Noted

GIVEN = {"length": 32, "speed": 0.0}
ONE_BATCH = {**GIVEN, "metrics": {"memory": False}, "batch_size": 16, "max_windows": 16}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "model"
    save_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def text(model: Path) -> str:
    file = model.parent / "text.txt"
    file.write_text("\n".join(f"line {i} of a text with windows enough" for i in range(60)))
    return str(file)


@pytest.fixture(scope="module")
def candidates(model: Path) -> list[Path]:
    """int8, int4 and the baseline itself."""
    recipe = {"version": 1, "portable": False, "rules": [{"match": "linear", "scheme": "int4-g32"}]}
    small = llmquant.quantize(model, {**recipe, "name": "small"}, model.parent / "int4").folder
    return [llmquant.quantize(model, "int8", model.parent / "int8").folder, small, model]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The class and dtype of embeddings of every model that runs over windows, in order."""
    from llmquant.eval import scoring

    seen: list[str] = []
    run = scoring.logits

    def logits(one, ids):
        seen.append(one.name_or_path.rpartition("/")[2])
        return run(one, ids)

    monkeypatch.setattr(scoring, "logits", logits)
    return seen


def test_numbers_are_those_of_each_alone_and_the_baseline_runs_once(model, candidates, text, passes) -> None:
    together = llmquant.evaluate(candidates, model, text=text, **ONE_BATCH)
    assert passes == ["model", "int8", "int4", "model"]  # the last one as a candidate
    alone = tuple(llmquant.evaluate(each, model, text=text, **ONE_BATCH) for each in candidates)
    assert together == alone
    assert [report.name for report in together] == ["int8", "small", "model"]
    kl = [report.sections["divergence"].kl.mean for report in together]
    assert kl[1] > kl[0] > kl[2] == 0.0


def test_what_memory_does_not_hold_is_measured_in_groups(model, candidates, text, passes, monkeypatch) -> None:
    options = {"text": text, **ONE_BATCH}
    wanted = llmquant.evaluate(candidates, model, **options)
    passes.clear()
    seen, size = Noted(), (model / "model.safetensors").stat().st_size
    monkeypatch.setattr("llmquant.compare.free_bytes", lambda _: 6 * size)
    assert llmquant.evaluate(candidates, model, **options, progress=seen) == wanted
    assert passes == ["model", "int8", "model", "int4", "model", "model"]
    assert [total for name, total, _ in seen.stages if name == "load"] == [2, 1, 1]
    assert seen.notes[0].startswith("memory holds 1 of 3 candidates")
    assert len(seen.notes) == 2


def test_candidates_of_one_recipe_are_called_by_their_folders(model, candidates, text, tmp_path) -> None:
    copies = [shutil.copytree(candidates[0], tmp_path / name / "int8-copy") for name in "ab"]
    found = llmquant.evaluate([*candidates[:2], copies[0]], model, text=text, max_windows=8, **GIVEN)
    assert [report.name for report in found] == ["int8", "small", "int8-copy"]
    found = llmquant.evaluate(copies, model, text=text, max_windows=8, **GIVEN)
    assert [report.name for report in found] == list(map(str, copies))
    with pytest.raises(DataError, match="given twice"):
        llmquant.evaluate([copies[0], copies[0]], model, text=text, **GIVEN)
    with pytest.raises(DataError, match="no model"):
        llmquant.evaluate([], model, text=text, **GIVEN)


def test_a_model_without_a_baseline_has_its_perplexity_and_nothing_compared(model, candidates, text, tmp_path, capsys):
    pair = llmquant.evaluate(candidates[0], model, text=text, **GIVEN)
    report = llmquant.evaluate(candidates[0], text=text, **GIVEN)
    assert report.baseline is None
    assert report.quantized == pair.quantized
    assert report.sections["perplexity"].quantized == pair.sections["perplexity"].quantized
    assert report.sections["windows"].nll_quantized == pair.sections["windows"].nll_quantized
    assert report.sections.keys() == {"perplexity", "memory", "layers", "anatomy", "windows"}
    bits = [each.sections["memory"].quantized.bits_per_weight for each in (report, pair)]
    assert bits[0] == bits[1]
    assert EvalReport.from_json(report.to_json()) == report
    page = render_page([report])
    assert "without a baseline" in page
    assert "None" not in page
    command = ["eval", str(candidates[0]), str(candidates[1]), "--text", text, "--length", "32", "--speed", "0", "-q"]
    assert main([*command, "--json", str(tmp_path / "alone.json")]) == 0
    shown = capsys.readouterr().out
    assert f"int8: {bits[0]:.3g} bits per weight, perplexity " in shown
    assert "against" not in shown
    assert main(["report", str(tmp_path / "alone.json")]) == 0
    assert "small: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": {"kl": 0.1}}, "budget kl is on a comparison"),
        ({"budget": {"perplexity_ratio": 1.1}}, "budget perplexity_ratio is on a comparison"),
        ({"metrics": {"worst": {"count": 3}}}, "'worst' compares two models"),
        ({"noise_floor": True}, "'noise_floor' compares two models"),
    ],
)
def test_what_compares_is_refused_without_a_baseline(candidates, text, options, message) -> None:
    with pytest.raises(RecipeError, match=message):
        llmquant.evaluate(candidates[0], text=text, **GIVEN, **options)


def test_models_of_other_tokenizers_are_not_set_side_by_side_alone(model, candidates, text, tmp_path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    file = other / "tokenizer.json"
    data = json.loads(file.read_text())
    assert data["post_processor"] != "changed"
    data["post_processor"] = None
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "x", "prepend_scheme": "always"}
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match="tokenizers make other tokens"):
        llmquant.evaluate([candidates[0], other], text=text, **GIVEN)


def test_the_command_line_takes_several(model, candidates, text, tmp_path, capsys) -> None:
    command = ["eval", *map(str, candidates[:2]), "--baseline", str(model), "--text", text, "--length", "32"]
    files = ["--json", str(tmp_path / "all.json"), "--report", str(tmp_path / "page.html")]
    assert main([*command, "--speed", "0", *files]) == 0
    written = json.loads((tmp_path / "all.json").read_text())
    assert [EvalReport.from_json(json.dumps(each)).name for each in written] == ["int8", "small"]
    shown = capsys.readouterr().out
    assert "int8: " in shown
    assert "small: " in shown
    assert "small" in (tmp_path / "page.html").read_text()
    assert "No budget was set, so no winner is named" in shown
    page = tmp_path / "later.html"
    assert main(["report", str(tmp_path / "all.json"), "-o", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "No budget was set, so no winner is named" in shown
    assert f"wrote {page}" in shown
    assert all(name in page.read_text() for name in ("int8", "small"))
    assert main([*command, "--speed", "0", "--budget", "kl=1e-9", "--quiet"]) == 3
    assert "No candidate keeps its budget" in capsys.readouterr().out
    kept = json.loads((tmp_path / "all.json").read_text())[0]["sections"]["divergence"]["kl"]["mean"]
    out = tmp_path / "out"
    assert main([*command, "--speed", "0", "--budget", f"kl={kept * 1.01}", "--quiet", "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "int8 wins: only it keeps its budget" in shown
    assert f"wrote {out / 'report.html'}, 2 reports" in shown


KILLED = """
import os, signal, sys
from llmquant.eval.store import Store
from llmquant.cli.main import main

keep, count = Store.keep_scores, 0

def keep_and_die(self, *part):
    global count
    keep(self, *part)
    count += 1
    if count == 5:
        os.kill(os.getpid(), signal.SIGKILL)

Store.keep_scores = keep_and_die
main(sys.argv[1:])
"""


def test_a_killed_evaluation_goes_on_with_what_it_has(model, candidates, text, tmp_path, passes) -> None:
    """The third batch of the first candidate is there and that of the second is not, when the process is killed."""
    options = {"text": text, "length": 32, "speed": 0.0, "batch_size": 4, "max_windows": 16}
    wanted = llmquant.evaluate(candidates[:2], model, **options, metrics={"memory": False})
    out = tmp_path / "out"
    command = ["eval", *map(str, candidates[:2]), "--baseline", str(model), "--text", text, "--length", "32"]
    command += ["--speed", "0", "--max-windows", "16", "--metric", "memory=false", "-o", str(out), "-q"]
    sized = KILLED.replace("main(sys", "from llmquant.eval import scoring\nscoring._MOST_WINDOWS = 4\nmain(sys")
    killed = subprocess.run([sys.executable, "-c", sized, *command], capture_output=True, timeout=200, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(out.rglob("scores *"))) == 5
    passes.clear()
    del options["batch_size"]  # the command line has none
    from llmquant.eval import scoring

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_MOST_WINDOWS", 4)
        given = {"metrics": {"memory": False}, "out": out}
        found = llmquant.evaluate(candidates[:2], model, **options, **given)
        assert passes == ["model", "int4", "model", "int8", "int4"]  # the third batch, then the fourth
        assert found == wanted
        passes.clear()
        assert llmquant.evaluate(candidates[:2], model, **options, **given) == wanted
        assert passes == []
        assert sorted(file.name for file in out.iterdir()) == ["int8.json", "parts", "report.html", "small.json"]
        assert EvalReport.load(out / "small.json") == wanted[1]
        next(out.rglob("report")).write_bytes(b"damaged")
        noted = Noted()
        assert llmquant.evaluate(candidates[:2], model, **options, **given, progress=noted) == wanted
        assert passes == []  # sections and scores are there
        assert "measured again" in noted.notes[0]
        llmquant.evaluate(candidates[:1], model, **{**options, "max_windows": 8}, **given)
        assert passes == ["model", "int8"] * 2  # other windows have parts of their own


def test_what_decides_the_numbers_decides_which_parts_are_taken(model, candidates, text, tmp_path, passes) -> None:
    folder, out = shutil.copytree(candidates[0], tmp_path / "int8"), tmp_path / "out"
    given = {"text": text, **ONE_BATCH, "out": out}
    first = llmquant.evaluate(folder, model, **given)
    passes.clear()
    again = llmquant.evaluate(folder, model, **given, budget={"kl": 1e-9})
    assert not again.budget_passed
    assert replace(again, budget=first.budget) == first
    file = folder / "llmquant.json"
    made = json.loads(file.read_text())
    file.write_text(json.dumps({**made, "recipe": {**made["recipe"], "budget": {"kl": 50.0}}}))
    again = llmquant.evaluate(folder, model, **given)
    assert [(each.limit, each.passed) for each in again.budget] == [(50.0, True)]
    assert "budget:" in (again.recipe_yaml or "")
    assert passes == []
    file.write_text(json.dumps({**made, "layers": {name: {"loss": 0.25} for name in made["layers"]}}))
    llmquant.evaluate(folder, model, **given)
    assert passes == ["model", "int8"]


@pytest.mark.parametrize("changed", ["data/valid.jsonl", "data/valid-labels.lst", "mine/utils/score.py"])
def test_data_of_tasks_decides_which_parts_are_taken(changed, tmp_path) -> None:
    for name in ("data/valid.jsonl", "data/valid-labels.lst", "mine/utils/score.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("0")
    found = SimpleNamespace(data_hash="sha256:0")
    options = EvalOptions(
        metrics={
            "tasks": {"files": {"piqa": str(tmp_path / "data" / "valid.jsonl")}, "include": [str(tmp_path / "mine")]}
        }
    )
    known: Any = Facts(
        subject=Subject(name="a", baseline_name="b"), windows=SimpleNamespace(protocol=found), tokenizer=None,  # type: ignore[arg-type]
        options=options,
    )  # fmt: skip

    def parts() -> None:
        _store(known, tmp_path / "out", torch.device("cpu"), Noted()).put("part", b"")

    parts()
    (tmp_path / "mine" / "__pycache__").mkdir(exist_ok=True)
    (tmp_path / "mine" / "__pycache__" / "score.pyc").write_text("written by Python")
    parts()
    assert len(list((tmp_path / "out" / "parts").iterdir())) == 1
    (tmp_path / changed).write_text("1")
    parts()
    assert len(list((tmp_path / "out" / "parts").iterdir())) == 2


def test_each_candidate_has_a_file_of_its_own() -> None:
    assert file_names(["a b", "a_b", "A/b", "...", "int8", "a_b-2"]) == [
        "a_b",
        "a_b-2",
        "A_b-3",
        "model",
        "int8",
        "a_b-2-2",
    ]


def test_a_file_in_place_of_the_folder_is_refused_before_loading(
    model, candidates, text, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("llmquant.compare.load_models", lambda *_: pytest.fail("a model was loaded"))
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="out is a file; give a folder"):
        llmquant.evaluate(candidates[0], model, text=text, **ONE_BATCH, out=tmp_path / "out")


def test_a_candidate_of_another_shape_is_noted(model, text, tmp_path) -> None:
    save_tiny(tmp_path / "other")
    short = tiny_llama()
    short.model.layers = short.model.layers[:1]
    short.config.num_hidden_layers = 1
    short.save_pretrained(tmp_path / "other")
    noted = Noted()
    llmquant.evaluate(tmp_path / "other", model, text=text, **ONE_BATCH, progress=noted)
    assert noted.notes[0].startswith("other is another model than the baseline: its config has num_hidden_layers 1 in ")
    noted = Noted()
    llmquant.evaluate(model, model, text=text, **ONE_BATCH, progress=noted)
    assert not any("another model" in note for note in noted.notes)


def test_parts_of_another_checkpoint_in_the_same_place_are_not_used(model, candidates, text, tmp_path, passes) -> None:
    """The folder keeps its name, and holds other weights when the same command comes again."""
    folder, given = tmp_path / "folder", {"text": text, **ONE_BATCH, "out": tmp_path / "out"}
    shutil.copytree(model, folder)
    before = llmquant.evaluate(folder, model, **given)
    assert passes == ["model", "folder"]
    shutil.rmtree(folder)
    shutil.copytree(candidates[1], folder)
    (folder / "llmquant.json").unlink()  # so that the name is the folder's, as before
    after = llmquant.evaluate(folder, model, **given)
    assert passes == ["model", "folder"] * 2
    assert before.name == after.name
    assert before.sections["divergence"].kl.mean == 0 < after.sections["divergence"].kl.mean
