"""Uploading: the order of things, what is refused before anything is sent, and what the hub's refusals mean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import llmquant
from llmquant.cli.main import main
from llmquant.errors import CheckpointError, DataError, OutputError
from llmquant.hub.push import push_to_hub
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


def test_the_pushed_files_name_no_path_of_this_machine(out: Path, model: Path, report, hub: State) -> None:
    push_to_hub(out, "me/mine", reports=[report])
    for name, data in hub.repositories["me/mine"].items():
        assert str(model.parent).encode() not in data, name
    assert json.loads(hub.repositories["me/mine"]["llmquant.json"])["source"] == "model"


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


def test_older_weights_go_and_other_models_stay(out: Path, hub: State) -> None:
    hub.repositories["me/mine"] = {
        "config.json": b"{}",
        "llmquant.json": b"{}",
        "model-00009-of-00009.safetensors": b"x",
        "notes.md": b"n",
    }
    assert push_to_hub(out, "me/mine").removed == ("model-00009-of-00009.safetensors",)
    assert "model-00009-of-00009.safetensors" not in hub.repositories["me/mine"]
    assert hub.repositories["me/mine"]["notes.md"] == b"n"
    hub.repositories["me/other"] = {"config.json": b"{}"}
    with pytest.raises(OutputError, match="did not write"):
        push_to_hub(out, "me/other")
    assert hub.repositories["me/other"] == {"config.json": b"{}"}
    push_to_hub(out, "me/other", overwrite=True)
    assert hub.repositories["me/other"]["config.json"] == (out / "config.json").read_bytes()


def test_a_dry_run_shows_everything_and_asks_nothing(out: Path, hub: State, capsys) -> None:
    assert main(["push", str(out), "me/mine", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not hub.asked
    for word in ("-00001-of-", "nothing was uploaded", "no measured numbers", "local folder"):
        assert word in shown
    assert yaml.safe_load(ModelCard(shown[shown.index("---") :]).data.to_yaml())["license"] == "apache-2.0"


def test_damage_and_foreign_folders_are_refused_before_anything_is_sent(
    out: Path, report, model: Path, hub: State
) -> None:
    with pytest.raises(CheckpointError, match="hf upload"):
        push_to_hub(model, "me/mine")
    with pytest.raises(OutputError, match="USER/NAME"):
        push_to_hub(out, "mine")
    with pytest.raises(OutputError, match="no name of a repository"):
        push_to_hub(out, "me/a b")
    other = llmquant.quantize(model, "int8", out.parent / "other")
    with pytest.raises(DataError, match="another recipe"):
        push_to_hub(other.folder, "me/mine", reports=[report])
    weights = next(out.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    with pytest.raises(CheckpointError, match="not what was written"):
        push_to_hub(out, "me/mine")
    assert not hub.asked
