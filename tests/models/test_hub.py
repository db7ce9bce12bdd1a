"""A hub id is fetched through huggingface_hub from a small server on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from llmquant.errors import CheckpointError
from llmquant.models.checkpoint import Checkpoint
from llmquant.models.hub import locate
from llmquant.models.skeleton import load_config
from tests.small_hub import COMMIT, environment, serve

FILES = {
    "good/model": {
        "config.json": b"{}",
        "model.safetensors": save({"a": torch.arange(3.0)}),
        "tokenizer.json": b"{}",
        "consolidated.safetensors": b"the same again",
        "onnx/config.json": b"{}",
        "pytorch_model.bin": b"pickle",
        "README.md": b"hello",
    },
    "old/pickle": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with serve(FILES) as address:
        yield address


# In another process, one for all cases.
CLIENT = """
import json, sys
from llmquant.errors import CheckpointError
from llmquant.models.checkpoint import Checkpoint
found = {}
for source, revision in json.loads(sys.argv[1]):
    try:
        opened = Checkpoint.open(source, revision=revision)
        names = sorted(file.name for file in opened.folder.iterdir())
        found[f"{source}@{revision}"] = [names, opened.read("a").tolist()]
    except CheckpointError as error:
        found[f"{source}@{revision}"] = str(error)
print(json.dumps(found))
"""


def ask(endpoint: str, home: Path, *cases: tuple[str, str | None]) -> dict[str, object]:
    command, settings = [sys.executable, "-c", CLIENT, json.dumps(cases)], environment(endpoint, home)
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_snapshot(endpoint: str, tmp_path: Path) -> None:
    found = ask(
        endpoint,
        tmp_path,
        ("good/model", None),
        ("good/model", COMMIT),
        ("good/model", "nope"),
        ("old/pickle", None),
        ("no/such", None),
        ("gated/model", None),
        ("down/model", None),
    )
    wanted = [["config.json", "model.safetensors", "tokenizer.json"], [0.0, 1.0, 2.0]]
    assert found["good/model@None"] == wanted
    assert found[f"good/model@{COMMIT}"] == wanted
    assert "has no revision 'nope'" in str(found["good/model@nope"])
    assert "has only pickle or another format" in str(found["old/pickle@None"])
    assert "neither a folder here nor a model on the hub" in str(found["no/such@None"])
    assert "it is gated" in str(found["gated/model@None"])
    assert "not a folder here, and the hub could not give it" in str(found["down/model@None"])


@pytest.mark.parametrize("source", ["a/b/c", "../x", "~/none", "/none", "x y", ""])
def test_what_is_no_hub_id(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # where no folder happens to be called so
    with pytest.raises(CheckpointError, match="no such folder, and not a hub id"):
        locate(source)


@pytest.mark.parametrize("source", ["nothing.gguf", "models/x.safetensors", "config.json", "a/pytorch_model.BIN"])
def test_the_name_of_a_file_is_not_looked_for_on_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmquant.models.hub._fetch", lambda *_: pytest.fail("the hub was asked"))
    for opening in (Checkpoint.open, load_config, locate):
        with pytest.raises(CheckpointError, match="there is no such file"):
            opening(source)


def adapter(folder: Path) -> Path:
    """A LoRA adapter, as peft saves it."""
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"})
    )
    (folder / "adapter_model.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    return folder


def gguf(folder: Path) -> Path:
    """A folder as llama.cpp's users have it."""
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    return folder


def file_of(name: str) -> Callable[[Path], Path]:
    """A file in place of a folder."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(b"x")
        return folder / name

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (adapter, r"adapter.*of 'org/base'.*merge_and_unload"),
        (gguf, r"model-Q4_K_M.gguf: is a GGUF file.*16-bit.*gguf_file='model-Q4_K_M.gguf'"),
        (file_of("model.gguf"), "is a GGUF file"),
        (file_of("model.safetensors"), "give its folder"),
        (file_of("pytorch_model.bin"), "pickle"),
    ],
)
def test_what_is_taken_for_a_model_is_refused_with_the_way_forward(
    make: Callable[[Path], Path], said: str, tmp_path: Path
) -> None:
    place = make(tmp_path)
    for opening in (Checkpoint.open, load_config, locate):
        for source in (place, str(place)):
            with pytest.raises(CheckpointError, match=f"(?s){said}"):
                opening(source)


def test_a_model_with_an_adapter_beside_it_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    assert locate(adapter(tmp_path)) == tmp_path
