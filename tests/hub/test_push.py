"""Uploading: the order of things, what is refused before anything is sent, and what the hub's refusals mean."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import llmquant
from llmquant.cli.main import main
from llmquant.errors import CheckpointError, DataError, OutputError, RecipeError
from llmquant.eval.result import to_json
from llmquant.hub.push import push_to_hub
from tests.engine.conftest import tiny_llama
from tests.hub.conftest import RECIPE
from tests.hub.writable_hub import State, serve
from tests.small_hub import environment

# huggingface_hub sends bodies in a way that its own http library is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_the_weights_arrive_before_what_makes_them_a_model(out: Path, report, hub: State) -> None:
    pushed = push_to_hub(out, "me/mine", reports=[report], base_model="org/base", private=True)
    assert hub.asked[0] == "create me/mine"
    assert hub.private == {"me/mine"}
    commits = [asked.split()[1:] for asked in hub.asked if asked.startswith("commit")]
    weights, rest = set().union(*commits[:-1]), set(commits[-1])
    assert weights == set(pushed.upload.weights)
    assert {"config.json", "README.md", "llmquant.json", "tokenizer.json"} <= rest
    assert pushed.url.startswith("http")
    for path in out.iterdir():
        if path.name != "llmquant.json":
            assert hub.repositories["me/mine"][path.name] == path.read_bytes()


def test_what_was_pushed_is_loaded_through_the_hub_with_the_same_logits(out: Path, report, tmp_path: Path) -> None:
    """In processes of their own: huggingface_hub reads the hub's address when it is imported."""
    (tmp_path / "eval.json").write_text(report.to_json())
    state = State()
    with serve(state) as address:
        variables = os.environ | environment(address, tmp_path / "home") | {"HF_TOKEN": "hf_t"}
        push = ["-m", "llmquant", "push", str(out), "me/mine", "--report", str(tmp_path / "eval.json")]
        done = subprocess.run([sys.executable, *push], env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        code = (
            "import sys, torch, llmquant; from transformers import AutoModelForCausalLM as A\n"
            "model = A.from_pretrained('me/mine', dtype='auto')\n"
            "with torch.no_grad(): torch.save(model(torch.arange(20)[None]).logits, sys.argv[1])"
        )
        loaded = [sys.executable, "-c", code, str(tmp_path / "logits")]
        done = subprocess.run(loaded, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        assert torch.load(tmp_path / "logits").equal(llmquant.load(out)(torch.arange(20)[None]).logits)


def test_the_pushed_files_name_no_path_of_this_machine(model: Path, tmp_path: Path, hub: State) -> None:
    text = tmp_path / "private" / "text.txt"
    text.parent.mkdir()
    text.write_text("a text that is long enough to calibrate on\n" * 90)
    data = {"dataset": str(text), "samples": 2, "length": 32}
    llmquant.quantize(model, RECIPE | {"rounding": {"method": "gptq"}, "calibration": data}, tmp_path / "out")
    report = llmquant.evaluate(tmp_path / "out", model, text=str(text), length=32, speed=0)
    push_to_hub(tmp_path / "out", "me/mine", reports=[report, report])
    for name, content in hub.repositories["me/mine"].items():
        assert str(model.parent).encode() not in content, name
        assert b"private" not in content, name
    assert hub.repositories["me/mine"]["README.md"].count(b"| text.txt |") == 1


def test_a_lost_connection_is_survived_or_goes_on_where_it_was(out: Path, hub: State, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.dropped = 1_000
    with pytest.raises(OutputError, match="push again"):
        push_to_hub(out, "me/mine")
    assert "config.json" not in hub.repositories["me/mine"]
    hub.dropped = 0
    push_to_hub(out, "me/mine")
    sent = hub.asked.count("object")
    push_to_hub(out, "me/mine")
    assert hub.asked.count("object") == sent, "files that the hub has were sent again"


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "hf auth login"), (403, "role 'write'"), (409, "somebody else"), (500, "push again")]
)
def test_a_refusal_of_the_hub_says_what_to_do(out: Path, hub: State, monkeypatch, status: int, advice: str) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.status = status
    with pytest.raises(OutputError, match=advice):
        push_to_hub(out, "me/mine")


def test_older_weights_of_ours_go(out: Path, hub: State) -> None:
    old = "model-00009-of-00009.safetensors"
    hub.repositories["me/mine"] = {"config.json": b"{}", "llmquant.json": b"{}", old: b"x", "notes.md": b"n"}
    assert push_to_hub(out, "me/mine", dry_run=True).removed == (old,)
    assert old in hub.repositories["me/mine"]
    assert push_to_hub(out, "me/mine").removed == (old,)
    assert old not in hub.repositories["me/mine"]
    assert hub.repositories["me/mine"]["notes.md"] == b"n"


@pytest.mark.parametrize("name", ["config.json", "model-Q4.gguf", "adapter_model.safetensors", "README.md"])
def test_what_somebody_else_put_there_stays(out: Path, hub: State, name: str) -> None:
    hub.repositories["me/other"] = {name: b"{}"}
    for dry in (True, False):
        with pytest.raises(OutputError, match=f"holds {name}, which llmquant did not write"):
            push_to_hub(out, "me/other", dry_run=dry)
    assert hub.repositories["me/other"] == {name: b"{}"}
    push_to_hub(out, "me/other", overwrite=True)
    assert hub.repositories["me/other"]["config.json"] == (out / "config.json").read_bytes()


def test_a_local_folder_is_never_taken_for_a_model_on_the_hub(
    model: Path, tmp_path: Path, hub: State, monkeypatch
) -> None:
    """Its name, as it was typed, may be that of somebody's repository."""
    monkeypatch.chdir(model.parent)
    llmquant.quantize("model", "int8", tmp_path / "out8")
    monkeypatch.chdir(tmp_path)
    pushed = push_to_hub(tmp_path / "out8", "me/mine")
    assert "base_model:" not in pushed.card
    assert any("local folder" in note for note in pushed.notes)
    told = json.loads(hub.repositories["me/mine"]["llmquant.json"])
    assert told["plan"]["rows"] == json.loads((tmp_path / "out8" / "llmquant.json").read_text())["plan"]["rows"]


def test_a_result_in_gguf_is_pushed_too(model: Path, tmp_path: Path, hub: State) -> None:
    recipe = {"version": 1, "name": "g", "format": "gguf", "rules": [{"match": "linear", "scheme": "int4-g32"}]}
    llmquant.quantize(model, recipe, tmp_path / "g")
    assert push_to_hub(tmp_path / "g", "me/g").upload.weights == ("model.gguf",)
    assert hub.repositories["me/g"]["model.gguf"] == (tmp_path / "g" / "model.gguf").read_bytes()


def test_a_hub_that_is_none_is_an_error(out: Path, hub: State, monkeypatch) -> None:
    monkeypatch.setattr("tests.hub.writable_hub.WritableHub._create", lambda self, _: self._reply(["what?"]))
    with pytest.raises(OutputError, match="does not speak as a hub does"):
        push_to_hub(out, "me/mine")


@pytest.mark.parametrize("change", [{"plan": []}, {"identity": None}, {"plan": {}}])
def test_an_llmquant_json_that_lacks_something_is_an_error(out: Path, hub: State, change: dict[str, object]) -> None:
    made = json.loads((out / "llmquant.json").read_text())
    (out / "llmquant.json").write_text(json.dumps(made | change))
    with pytest.raises(CheckpointError, match="lacks what the card is made of"):
        push_to_hub(out, "me/mine")
    assert not hub.asked


def test_a_dry_run_shows_everything_and_asks_nothing(out: Path, hub: State, capsys) -> None:
    assert main(["push", str(out), "me/mine", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not hub.asked
    for word in ("-00001-of-", "nothing was uploaded", "no measured numbers", "local folder"):
        assert word in shown
    assert yaml.safe_load(ModelCard(shown[shown.index("---") :]).data.to_yaml())["license"] == "apache-2.0"


def test_a_dry_run_without_a_network_tries_once(out: Path, monkeypatch) -> None:
    """Neither for the card of the base model nor for what the repository holds."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: pytest.fail("it tries again"))
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nobody)
    files = f"{nobody}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = json.loads((out / "llmquant.json").read_text())
    (out / "llmquant.json").write_text(json.dumps(made | {"source": "org/of-nobody"}))
    pushed = push_to_hub(out, "me/mine", dry_run=True)
    assert any("the card of org/of-nobody could not be read" in note for note in pushed.notes)
    (said,) = (note for note in pushed.notes if "the hub could not be asked what it holds" in note)
    assert "me/mine: " in said
    with pytest.raises(OutputError, match="push again"):
        push_to_hub(out, "me/mine")


def test_damage_and_foreign_folders_are_refused_before_anything_is_sent(
    out: Path, report, model: Path, hub: State
) -> None:
    with pytest.raises(CheckpointError, match="hf upload"):
        push_to_hub(model, "me/mine")
    with pytest.raises(OutputError, match="USER/NAME"):
        push_to_hub(out, "mine")
    with pytest.raises(OutputError, match="no name of a repository"):
        push_to_hub(out, "me/a b")
    shutil.copytree(model, out.parent / "model2")
    tiny_llama(rope_theta=500.0, tie_word_embeddings=True).save_pretrained(out.parent / "model2")
    other = llmquant.quantize(out.parent / "model2", RECIPE, out.parent / "other")
    with pytest.raises(DataError, match="not of the weights"):
        push_to_hub(other.folder, "me/mine", reports=[report])
    weights = next(out.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    with pytest.raises(CheckpointError, match="not what was written"):
        push_to_hub(out, "me/mine")
    assert not hub.asked


def test_quantize_pushes_what_it_made(model: Path, tmp_path: Path, hub: State, capsys) -> None:
    out = tmp_path / "out"
    assert main(["quantize", str(model), "-r", "int8", "-o", str(out), "--push", "me/mine", "--private"]) == 0
    assert "/me/mine/commit/" in capsys.readouterr().out
    assert hub.private == {"me/mine"}
    assert hub.repositories["me/mine"]["config.json"] == (out / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("repo", "role", "said"), [("mine", "write", "give USER/NAME"), ("me/mine", "read", "role 'write'")]
)
def test_what_cannot_be_pushed_is_not_quantized(
    model: Path, tmp_path: Path, hub: State, monkeypatch, capsys, repo: str, role: str, said: str
) -> None:
    monkeypatch.setattr("llmquant.api.quantize", lambda *_, **__: pytest.fail("the work began"))
    hub.role = role
    assert main(["quantize", str(model), "-r", "int8", "-o", str(tmp_path / "out"), "--push", repo]) == 1
    assert said in capsys.readouterr().err


def test_a_push_that_fails_leaves_the_finished_folder_and_says_how_to_go_on(
    model: Path, tmp_path: Path, hub: State, monkeypatch, capsys
) -> None:
    out = tmp_path / "out"
    hub.status = 409
    run = ["quantize", str(model), "-r", "int8", "-o", str(out), "--push", "me/mine", "--private"]
    again = f"llmquant push {out} me/mine --private publishes it"
    assert main(run) == 1
    assert again in capsys.readouterr().err
    monkeypatch.setattr("llmquant.hub.push.push_to_hub", _interrupt)
    assert main([*run, "--resume"]) == 130
    assert again in capsys.readouterr().err
    monkeypatch.undo()
    hub.status = 0
    assert llmquant.load(out, verify=True).config.quantization_config


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_private_without_push_is_refused(model: Path, tmp_path: Path, capsys) -> None:
    assert main(["quantize", str(model), "-r", "int8", "-o", str(tmp_path / "out"), "--private"]) == 1
    assert "--push USER/NAME" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_card_shows_the_result_among_others_that_were_measured_with_it(
    out: Path, report, model: Path, hub: State, tmp_path: Path
) -> None:
    other = replace(report, name="other [x]", checkpoint="sha256:1")
    (tmp_path / "eval.json").write_text(to_json([other, report]))
    assert main(["push", str(out), "me/mine", "--report", str(tmp_path / "eval.json")]) == 0
    files = hub.repositories["me/mine"]
    assert files["loss-against-size.png"].startswith(b"\x89PNG")
    card = files["README.md"].decode()
    assert "](loss-against-size.png)" in card
    assert "other x" in card
    assert card.count("| text.txt |") == 1, "the table is of this result alone"
    alone = push_to_hub(out, "me/alone", reports=[report])
    assert "loss-against-size" not in alone.card
    assert "loss-against-size.png" not in hub.repositories["me/alone"]
    with pytest.raises(DataError, match=r"'other .x.'.* not of the weights"):
        push_to_hub(out, "me/mine", reports=[other])


@pytest.mark.parametrize("key", ["rounding", "format"])
def test_no_file_that_a_folder_names_is_run(out: Path, tmp_path: Path, hub: State, monkeypatch, key: str) -> None:
    evil = Path("evil.py")  # without a dash, which the name of a format would turn into another path
    monkeypatch.chdir(tmp_path)
    evil.write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    made = json.loads((out / "llmquant.json").read_text())
    made["recipe"][key] = {"method": str(evil)} if key == "rounding" else str(evil)
    (out / "llmquant.json").write_text(json.dumps(made))
    if key == "format":
        with pytest.raises(RecipeError, match="is a file, not a format"):
            push_to_hub(out, "me/mine", dry_run=True)
    else:
        push_to_hub(out, "me/mine", dry_run=True)
    assert not (tmp_path / "marker").exists()
