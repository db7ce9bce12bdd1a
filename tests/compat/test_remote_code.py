"""Code that comes with a checkpoint: it runs where it is trusted, and otherwise nothing runs it and nobody is asked."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import llmquant
from llmquant.cli.main import main
from llmquant.engine.prepare import load_tokenizer
from llmquant.errors import CheckpointError
from tests.engine.conftest import byte_tokenizer, tiny_llama

MODEL_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path(MARK).write_text("ran")

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
TOKENIZER_CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast

Path(MARK).write_text("ran")

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}


def change_json(file: Path, **changes: object) -> None:
    """Set keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def with_own_code(folder: Path, mark: Path) -> Path:
    """A model folder whose architecture is in own.py, which writes `mark` when it runs."""
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "own.py").write_text(MODEL_CODE.replace("MARK", repr(str(mark))))
    change_json(folder / "config.json", model_type="own", architectures=["OwnForCausalLM"], auto_map=AUTO_MAP)
    return folder


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that exists once the checkpoint's code ran; whoever asks the user gets "y"."""
    asked: list[object] = []
    monkeypatch.setattr(builtins, "input", lambda *args: asked.append(args) or "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield tmp_path / "it-ran"
    assert not asked, "the user was asked on standard input"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text for evaluation and calibration."""
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"{i} times {i + 1} makes {i * (i + 1)}" for i in range(100)))
    return path


def verbs(model: Path, text: Path, out: Path) -> dict[str, list[str]]:
    """A command for each verb that opens a model."""
    measured = ["--text", str(text), "--length", "32", "--max-windows", "2", "--speed", "0"]
    return {
        "plan": ["plan", str(model), "-r", "int4-g32"],
        "plan a file": ["plan", str(model / "config.json"), "-r", "int4-g32"],
        "quantize": ["quantize", str(model), "-r", "int4-g32", "-o", str(out)],
        "eval": ["eval", str(model), "--baseline", str(model), *measured],
        "bench": ["bench", str(model), "--seconds", "0", "--context", "8", "--new", "2", "--schemes", "int4-g32"],
        "bench without dense": ["bench", str(model), "--dtypes", "fp32", "--schemes", "int8"],
    }


@pytest.mark.parametrize("verb", list(verbs(Path(), Path(), Path())))
def test_no_verb_runs_it_unasked(
    verb: str, mark: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_own_code(tmp_path / "own model", mark)
    capsys.readouterr()  # transformers' bars
    assert main(verbs(model, text, tmp_path / "out")[verb]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "--trust-remote-code" in error
    assert str(model) in error
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_a_quantized_folder_does_not_run_it_unasked(mark: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    llmquant.quantize(with_own_code(tmp_path / "own", mark), "int4-g32", out, trust_remote_code=True)
    mark.unlink()
    with pytest.raises(CheckpointError, match="trust_remote_code=True"):
        llmquant.load(out)
    assert not mark.exists()


def test_a_tokenizer_does_not_run_it_unasked(mark: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    byte_tokenizer().save_pretrained(folder)
    tiny_llama().config.save_pretrained(folder)
    (folder / "own_tokens.py").write_text(TOKENIZER_CODE.replace("MARK", repr(str(mark))))
    auto_map = {"AutoTokenizer": [None, "own_tokens.OwnTokenizer"]}
    change_json(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=auto_map)
    with pytest.raises(CheckpointError, match="--trust-remote-code"):
        load_tokenizer(folder)
    assert not mark.exists()
    assert type(load_tokenizer(folder, trust_remote_code=True)).__name__ == "OwnTokenizer"
    assert mark.exists()


def test_code_that_is_not_needed_does_not_run(mark: Path, tmp_path: Path) -> None:
    model = with_own_code(tmp_path / "own", mark)
    change_json(model / "config.json", model_type="llama")  # transformers has this one itself
    llmquant.quantize(model, "int4-g32", tmp_path / "out")
    assert llmquant.load(tmp_path / "out").config.model_type == "llama"
    assert not mark.exists()


def test_trusted_it_runs_and_goes_with_the_result(mark: Path, text: Path, tmp_path: Path) -> None:
    model = with_own_code(tmp_path / "own", mark)
    commands = verbs(model, text, tmp_path / "out")
    for verb in ("plan", "plan a file", "quantize", "bench"):
        assert main([*commands[verb], "--trust-remote-code"]) == 0, verb
        assert mark.exists()  # once: Python keeps a module that it has imported
    measured = commands["eval"][2:]
    assert main(["eval", str(tmp_path / "out"), *measured, "--trust-remote-code"]) == 0
    loaded = llmquant.load(tmp_path / "out", trust_remote_code=True)
    assert type(loaded).__name__ == "OwnForCausalLM"
    plain = tiny_llama()
    plain.save_pretrained(tmp_path / "plain")
    llmquant.quantize(tmp_path / "plain", "int4-g32", tmp_path / "plain-out")
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, llmquant.load(tmp_path / "plain-out")(ids).logits)


def test_a_calibrated_recipe_in_from_pretrained_keeps_to_what_the_user_said(
    mark: Path, text: Path, tmp_path: Path
) -> None:
    recipe: dict[str, Any] = {
        "version": 1,
        "rules": [{"match": "linear", "scheme": "int4-g32"}],
        "rounding": {"method": "gptq"},
        "calibration": {"dataset": str(text), "samples": 12, "length": 48},
    }
    model = with_own_code(tmp_path / "own", mark)
    loaded = AutoModelForCausalLM.from_pretrained(
        model, trust_remote_code=True, quantization_config=llmquant.RecipeConfig(recipe)
    )
    llmquant.quantize(model, recipe, tmp_path / "out", trust_remote_code=True)
    streamed = llmquant.load(tmp_path / "out", trust_remote_code=True)
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, streamed(ids).logits)


def test_a_package_that_the_code_lacks_is_named(mark: Path, tmp_path: Path) -> None:
    model = with_own_code(tmp_path / "own", mark)
    (model / "own.py").write_text("import no_such_package_at_all\n" + (model / "own.py").read_text())
    with pytest.raises(CheckpointError, match="no_such_package_at_all"):
        llmquant.plan(model, "int4-g32", trust_remote_code=True)


@pytest.mark.slow
def test_standard_input_is_not_read(tmp_path: Path) -> None:
    """The same in a process of its own, where transformers would really ask."""
    model = with_own_code(tmp_path / "own", tmp_path / "it-ran")
    done = subprocess.run(
        [sys.executable, "-m", "llmquant", "plan", str(model), "-r", "int8"],
        input="y\n" * 4, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "--trust-remote-code" in done.stderr
    assert not (tmp_path / "it-ran").exists()


def test_transformers_would_have_asked(mark: Path, tmp_path: Path) -> None:
    """What the tests above guard against: without an answer from us, "y" on standard input runs the code."""
    model = with_own_code(tmp_path / "own", mark)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "input", lambda *_: "y")
        AutoConfig.from_pretrained(model)
    assert mark.exists()
