"""A quantized folder with its evaluation, and a hub that takes it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

import llmquant
from llmquant.eval.result import EvalReport
from tests.engine.conftest import save_tiny
from tests.hub.writable_hub import State, serve

RECIPE = {"version": 1, "name": "mine", "rules": [{"match": "linear", "scheme": "int4-g32"}]}
BASE_CARD = "---\nlicense: apache-2.0\nlanguage: [en]\npipeline_tag: text-generation\n---\n\n# A model\n"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its card."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    save_tiny(folder)
    (folder / "README.md").write_text(BASE_CARD)
    return folder


@pytest.fixture(scope="session")
def finished(model: Path) -> Path:
    """A result; do not change it."""
    llmquant.quantize(model, RECIPE, model.parent / "out")
    return model.parent / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A result of one's own."""
    return shutil.copytree(finished, tmp_path / "out")


@pytest.fixture(scope="session")
def report(model: Path, finished: Path) -> EvalReport:
    """What was measured of the result."""
    text = model.parent / "text.txt"
    text.write_text("\n".join(f"line {i} of a text that is long enough for some windows" for i in range(60)))
    return llmquant.evaluate(finished, model, text=str(text), length=32, speed=0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[State]:
    """A hub of this test, at the address that huggingface_hub uses; without Xet, which it does not speak."""
    state = State()
    with serve(state) as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        files = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_" + "t" * 10)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield state
