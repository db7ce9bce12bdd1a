"""Methods by name, from outside the package too; messages about a name that is not there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import llmquant
from llmquant import by_name, formats
from llmquant.algorithms import rounding
from llmquant.errors import OutputError, RecipeError
from llmquant.eval import metrics
from llmquant.hub.files import published
from llmquant.recipe.load import load_recipe
from tests.engine.conftest import save_tiny


def recipe_of_format(name: str) -> Any:
    return load_recipe({"version": 1, "rules": [{"match": "linear", "scheme": "int8"}], "format": name})


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (metrics.find, "surprise", "unknown metric 'surprise'. There are: "),
        (metrics.find, "divergense", "unknown metric 'divergense'; did you mean 'divergence'? There are: "),
        (formats.find, "xyz", "unknown format 'xyz'. There are: "),
        (recipe_of_format, "xyz", "unknown format 'xyz'. There are: compressed-tensors, gguf"),
        (recipe_of_format, "ggu", "unknown format 'ggu'; did you mean 'gguf'? There are: compressed-tensors, gguf"),
    ],
)
def test_unknown_names(find: Callable[[str], Any], name: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        find(name)
    assert message in str(raised.value)


NEAREST_EVEN = '''
"""Scales that are powers of two, in a file of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from llmquant.algorithms.rounding import find

NEEDS = frozenset()


@dataclass(frozen=True, kw_only=True)
class Options:
    """Nothing but a mark."""

    mark: int = 1


def quantize(weight, statistics, scheme, options, *, scale_dtype):
    """As rounding to nearest does, with each scale doubled `mark` times."""
    rtn = find("rtn")
    found = rtn.quantize(weight, statistics, scheme, rtn.Options(), scale_dtype=scale_dtype)
    return replace(found, quantized=replace(found.quantized, scales=found.quantized.scales * 2**options.mark))
'''


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe with a rounding method in a file beside it."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text(NEAREST_EVEN, encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "version: 1\nrules: [{match: linear, scheme: int8}]\nrounding: {method: methods/mine.py, mark: 3}\n",
        encoding="utf-8",
    )
    return path


def test_a_method_in_a_file_beside_the_recipe(recipe_file: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    made = llmquant.quantize(tmp_path / "model", recipe_file, tmp_path / "mine")
    plain = llmquant.quantize(tmp_path / "model", "int8", tmp_path / "plain")
    scales = [
        {
            key: tensor
            for file in sorted(folder.glob("*.safetensors"))
            for key, tensor in load_file(file).items()
            if key.endswith("_scale")
        }
        for folder in (made.folder, plain.folder)
    ]
    assert scales[0].keys() == scales[1].keys() != set()
    assert all(torch.equal(scales[0][key], 8 * scales[1][key]) for key in scales[0])
    method = str(tmp_path / "methods" / "mine.py")
    assert made.provenance["recipe"]["rounding"] == {"method": method, "mark": 3}
    assert made.provenance["identity"]["code"].keys() == {method}
    # Elsewhere, without the file, the result is read all the same; and its path stays here.
    Path(method).unlink()
    assert llmquant.evaluate(made.folder, tmp_path / "model", max_windows=2, length=16, speed=0).name == "recipe"
    assert published(made.provenance, "base")["recipe"]["rounding"]["method"] == "mine.py"


def test_a_run_does_not_go_on_with_other_code(recipe_file: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    llmquant.quantize(tmp_path / "model", recipe_file, tmp_path / "out")
    with (tmp_path / "methods" / "mine.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    with pytest.raises(OutputError, match="of a different run"):
        llmquant.quantize(tmp_path / "model", recipe_file, tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no file"),
        (
            "NEEDS = frozenset()\n",
            r"is no rounding method: it has no Options, quantize; each defines NEEDS, Options, quantize",
        ),
        ("import nothing_of_that_name\n", r"cannot be run \(ModuleNotFoundError: No module named"),
        ("def broken(:\n", r"cannot be run \(SyntaxError"),
    ],
)
def test_files_that_are_no_method(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        rounding.find(str(path))
    assert not [name for name in sys.modules if str(path) in name and text != "NEEDS = frozenset()\n"]


def test_a_method_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_methods.py").write_text(NEAREST_EVEN, encoding="utf-8")
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[llmquant.algorithms.rounding]\ndoubled = their_methods\nrtn = their_methods\ngone = no_such_module\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    by_name._outside.cache_clear()
    try:
        assert {"doubled", "gptq", "rtn"} <= set(rounding.names())
        assert rounding.find("doubled").Options(mark=2).mark == 2
        assert rounding.find("rtn") is sys.modules["llmquant.algorithms.rounding.rtn"]  # nobody takes a name of ours
        rules = [{"match": "linear", "scheme": "int8"}]
        assert load_recipe({"version": 1, "rules": rules, "rounding": {"method": "doubled", "mark": 2}})
        with pytest.raises(RecipeError, match=r"gone of the entry point 'no_such_module' cannot be run"):
            rounding.find("gone")
    finally:
        by_name._outside.cache_clear()
        sys.modules.pop("their_methods", None)
