"""`push_to_hub` of a packed model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

import llmquant
from llmquant.engine.output.check_folder import verify_folder
from llmquant.errors import LlmquantError, OutputError
from llmquant.hub.model import push_model
from tests.engine.conftest import tiny_llama
from tests.hub.conftest import RECIPE
from tests.hub.writable_hub import State, serve
from tests.small_hub import environment

# huggingface_hub sends bodies in a way that its own http library is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def fetched(hub: State, folder: Path, repo: str = "me/mine") -> Path:
    """A repository as a folder."""
    folder.mkdir()
    for name, content in hub.repositories[repo].items():
        (folder / name).write_bytes(content)
    return folder


def test_a_loaded_model_is_pushed_as_its_folder_would_be(out: Path, report, hub: State, tmp_path: Path) -> None:
    model: Any = llmquant.load(out)
    address = model.push_to_hub("me/mine", private=True, commit_message="hello", reports=[report], tags=["mine"])
    assert str(address).startswith("http")
    assert hub.private == {"me/mine"}
    first, last = (set(asked.split()[1:]) for asked in hub.asked if asked.startswith("commit"))
    assert first == {"model.safetensors"}
    assert {"config.json", "README.md", "llmquant.json", "tokenizer.json"} <= last
    there, here = (json.loads((folder / "llmquant.json").read_text()) for folder in (fetched(hub, tmp_path / "f"), out))
    assert there["tensors"] == here["tensors"]
    assert there["layers"] == here["layers"]
    assert verify_folder(tmp_path / "f").note == ""
    card = ModelCard((tmp_path / "f" / "README.md").read_text())
    assert {"mine", "int4"} <= set(card.data.to_dict()["tags"])
    assert "text.txt |" in card.text
    assert "changed after quantization" not in card.text
    model.push_to_hub("me/mine")  # again, over what is ours


PROGRAM = """
import sys, torch, llmquant
from transformers import AutoModelForCausalLM as A
source, out = sys.argv[1:]
made = A.from_pretrained(source, dtype="auto", quantization_config=llmquant.RecipeConfig("int4-g32-gptq"))
made.push_to_hub("me/mine")
back = A.from_pretrained("me/mine", dtype="auto")
back.push_to_hub("me/second", revision="main")
again = llmquant.load("me/second")
with torch.no_grad():
    torch.save([model(torch.arange(20)[None]).logits for model in (made, back, again)], out)
"""


def test_what_was_quantized_in_memory_comes_back_through_the_hub_bit_for_bit(model: Path, tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads the hub's address when it is imported."""
    text = "a text that is long enough to calibrate on\n" * 900
    (tmp_path / "text.txt").write_text(text)
    program = PROGRAM.replace('"int4-g32-gptq"', repr(_calibrated(tmp_path / "text.txt")))
    state = State()
    with serve(state) as address:
        variables = os.environ | environment(address, tmp_path / "home") | {"HF_TOKEN": "hf_t"}
        command = [sys.executable, "-c", program, str(model), str(tmp_path / "logits")]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    made, back, again = torch.load(tmp_path / "logits")
    assert made.equal(back)
    assert made.equal(again)
    for repo in ("me/mine", "me/second"):
        told = json.loads(state.repositories[repo]["llmquant.json"])
        assert told["recipe"]["name"] == "mine"
        assert all(0 < layer["loss"] < 0.1 for layer in told["layers"].values())
        assert told["calibration"]["samples"] == 2
        assert str(tmp_path).encode() not in state.repositories[repo]["llmquant.json"]
        assert b"Calibrated on 2 x 32 tokens of `text.txt`" in state.repositories[repo]["README.md"]
        assert "tokenizer.json" in state.repositories[repo]
        assert verify_folder(fetched(state, tmp_path / repo.replace("/", "-"), repo)).note == ""


def _calibrated(text: Path) -> dict[str, object]:
    return RECIPE | {
        "rounding": {"method": "gptq"},
        "calibration": {"dataset": str(text), "samples": 2, "length": 32},
    }


def test_edits_after_quantization_are_told(out: Path, hub: State, tmp_path: Path) -> None:
    model: Any = llmquant.load(out)
    with torch.no_grad():
        model.get_parameter("model.norm.weight").mul_(2)
    model.push_to_hub("me/mine")
    assert b"1 of " in hub.repositories["me/mine"]["README.md"]
    assert b"tensors were changed after quantization" in hub.repositories["me/mine"]["README.md"]
    verify_folder(fetched(hub, tmp_path / "f"))


def test_of_what_nothing_is_known_transformers_pushes(out: Path, model: Path, hub: State, tmp_path: Path) -> None:
    llmquant.load(out).save_pretrained(tmp_path / "saved")
    models: dict[str, Any] = {"packed": llmquant.load(tmp_path / "saved"), "dense": tiny_llama()}
    for name, loaded in models.items():
        assert push_model(loaded, f"me/{name}") is None
        loaded.push_to_hub(f"me/{name}")
        assert {"config.json", "model.safetensors"} <= hub.repositories[f"me/{name}"].keys()
        assert "llmquant.json" not in hub.repositories[f"me/{name}"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"create_pr": True}, "two commits"),
        ({"repo_id": "mine"}, "USER/NAME"),
        ({"repo_id": "me/other"}, "did not write"),
    ],
)
def test_what_can_be_refused_is_refused_before_anything_is_saved(
    out: Path, hub: State, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], said: str
) -> None:
    hub.repositories["me/other"] = {"notes.md": b"n"}
    model: Any = llmquant.load(out)
    monkeypatch.setattr(type(model), "save_pretrained", lambda *_, **__: pytest.fail("it was saved"))
    with pytest.raises(LlmquantError, match=said):
        model.push_to_hub(**({"repo_id": "me/mine"} | options))
    assert not hub.asked


def test_files_that_differ_from_the_model_are_not_sent(out: Path, hub: State, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    save = type(model).save_pretrained

    def damaged(self: Any, folder: Path, **options: Any) -> None:
        save(self, folder, **options)
        file = next(folder.glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-1] + b"\x55")

    monkeypatch.setattr(type(model), "save_pretrained", damaged)
    with pytest.raises(OutputError, match="was saved as something else"):
        model.push_to_hub("me/mine")
    assert not hub.asked
