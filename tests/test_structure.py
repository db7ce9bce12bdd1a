"""The house is as it says: imports, private names, docs and the places of tests."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import grimp
import pytest
from torch import nn


def test_contracts_hold(repository: Path) -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(done.stdout[done.stdout.find("Contracts") :] + done.stderr)
    assert "0 broken" in done.stdout


def test_the_graph_has_every_module(repository: Path) -> None:
    """With a folder that has no __init__.py grimp sees only what is named as a root; a lost module is not checked."""
    graph = grimp.build_graph("llmquant", "llmquant.kernels", cache_dir=None)
    seen = {module.replace(".", "/") for module in graph.modules}
    package = repository / "llmquant"
    folders = [package, *(folder for folder in package.iterdir() if folder.is_dir() and folder.name != "demo_model")]
    for folder in folders:
        for file in folder.rglob("*.py") if folder != package else folder.glob("*.py"):
            parts = file.relative_to(repository).with_suffix("").parts
            if parts[1:3] == ("kernels", "bench"):
                continue
            name = "/".join(parts[:-1] if parts[-1] == "__init__" else parts)
            assert name in seen, f"import-linter does not see {name}"
    assert graph.direct_import_exists(importer="llmquant.nn.linear", imported="llmquant.kernels.ops.linear_int")


def test_no_module_imports_itself_on_a_detour() -> None:
    """No circle among all modules; imports inside functions and those for type checkers count too."""
    graph = grimp.build_graph("llmquant", "llmquant.kernels", cache_dir=None)
    try:
        TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_only_compat_touches_what_transformers_calls_private(repository: Path) -> None:
    """Submodules of transformers, and what its classes mark as their own, belong to one folder."""
    private = _private_names()
    assert {"_keys_to_ignore_on_save", "_tied_weights_keys", "_attn_implementation", "_init_weights"} <= private
    assert {"_dequantize", "_process_model_before_weight_loading", "_is_hf_initialized", "hf_quantizer"} <= private
    for file in _ours(repository):
        touched = _touched(ast.parse(file.read_text(encoding="utf-8")), private)
        where = f"{file.relative_to(repository)}:{touched[0][0] if touched else 0}"
        assert not touched, f"{where} touches {touched[0][1]} of transformers; that belongs into llmquant/compat"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("model.hf_quantizer.packed", "hf_quantizer"),
        ("getattr(getattr(model, 'hf_quantizer', None), 'packed', False)", "hf_quantizer"),
        ("layer.self_attn.config._attn_implementation", "_attn_implementation"),
        ("self._model.config._new_in_another_version", "_new_in_another_version"),
        ("setattr(model, '_new_in_another_version', 1)", "_new_in_another_version"),
        ("owner._init_weights(module)", "_init_weights"),
        ("class Ours(HfQuantizer):\n    def _dequantize(self, model): ...", "_dequantize"),
        ("from transformers.modeling_utils import PreTrainedModel", "transformers.modeling_utils"),
        ("from transformers import modeling_utils", "transformers.modeling_utils"),
    ],
)
def test_what_counts_as_private_of_transformers(code: str, name: str) -> None:
    assert [found for _, found in _touched(ast.parse(code), _private_names())] == [name]


def test_what_is_not_private_of_transformers() -> None:
    code = "from transformers import AutoModelForCausalLM\nmodel._modules, self._model.config.model_type, lent._memory"
    assert not _touched(ast.parse(code), _private_names())


_THEIRS = {"model", "base_model", "config", "quantizer", "tokenizer", "attention"}  # what we call objects of theirs
_TORCH = frozenset(dir(nn.Module()))


def _touched(tree: ast.Module, private: frozenset[str]) -> list[tuple[int, str]]:
    """Line and name of all that a file uses of transformers' own affairs."""

    def is_private(name: str, owner: ast.expr) -> bool:
        called = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
        own = name.startswith("_") and not name.startswith("__") and name not in _TORCH
        return name in private or (own and called.lstrip("_") in _THEIRS)

    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("transformers.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers."):
            names = [str(node.module)]
        elif isinstance(node, ast.ImportFrom) and node.module == "transformers":
            full = [f"transformers.{alias.name}" for alias in node.names if alias.name.islower()]
            names = [name for name in full if find_spec(name)]
        elif isinstance(node, ast.Attribute) and is_private(node.attr, node.value):
            names = [node.attr]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            owner, name = node.args[0], node.args[1]
            names = [str(name.value)] if isinstance(name, ast.Constant) and is_private(str(name.value), owner) else []
        elif isinstance(node, ast.ClassDef) and node.bases:  # its own methods, where it may override theirs
            names = [item.name for item in node.body if isinstance(item, ast.FunctionDef) and item.name in private]
        found += [(getattr(node, "lineno", 0), name) for name in names]
    return found


@cache
def _private_names() -> frozenset[str]:
    """Methods and attributes with an underscore in the classes that we meet, and one that only says so in its words."""
    names: set[str] = set()
    for module in (
        "modeling_utils",
        "configuration_utils",
        "quantizers.base",
        "quantizers.quantizer_compressed_tensors",
    ):
        source = find_spec(f"transformers.{module}")
        assert source is not None
        for node in ast.walk(ast.parse(Path(str(source.origin)).read_text(encoding="utf-8"))):
            body = node.body if isinstance(node, ast.ClassDef) else ()
            names |= {item.name for item in body if isinstance(item, ast.FunctionDef)}
            names |= {
                item.target.id for item in body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
            names |= {node.attr} if isinstance(node, ast.Attribute) else set()
    private = {name for name in names if name.startswith("_") and not name.startswith("__")} | {"hf_quantizer"}
    return frozenset(private - _TORCH)


def _ours(repository: Path) -> list[Path]:
    rooms = (repository / "llmquant", repository / "eval", repository / "kernels")
    compat = repository / "llmquant" / "compat"
    return [file for room in rooms for file in sorted(room.rglob("*.py")) if compat not in file.parents]


def test_the_docs_list_the_layers_of_the_contract(repository: Path) -> None:
    project = (repository / "pyproject.toml").read_text(encoding="utf-8")
    contract = re.search(r"^layers = \[\n(.*?)^\]", project, re.M | re.S)
    assert contract
    rows = [re.findall(r"llmquant\.([a-z]\w+)", line) for line in contract[1].splitlines()]
    there = [[name for name in row if find_spec(f"llmquant.{name}")] for row in rows]
    page = (repository / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = re.search(r"^## Layers\n.*?```\n(.*?)```", page, re.M | re.S)
    assert drawn
    assert [re.findall(r"\w+", line) for line in drawn[1].splitlines()] == list(filter(None, there))


@pytest.mark.parametrize("page", ["architecture", "formats", "cpu", "gpu", "benchmarks"])
def test_the_docs_name_only_files_that_exist(repository: Path, page: str) -> None:
    """What a page puts in backticks and looks like a path is one, from the top or from a room."""
    text = re.sub(r"```.*?```", "", (repository / "docs" / f"{page}.md").read_text(encoding="utf-8"), flags=re.S)
    tracked = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout
    files = [f"/{name}" for name in tracked.splitlines()]
    for name in re.findall(r"`(\w[\w./]*/[\w./]*|\w+\.(?:py|cpp|h|json|yaml))`", text):
        wanted = f"/{name.removeprefix('llmquant/').strip('/')}"
        assert any(file.endswith(wanted) or f"{wanted}/" in file or f"{wanted}." in file for file in files), name


# What a whole room keeps, whichever of its files does it; and tests of the repository.
_OF_A_ROOM = {
    "contract": "every module that a room finds by name",
    "golden": "bytes that must not change",
    "isolation": "the C++ library in a process that is not ours",
    "memory": "what the C++ library leaves behind",
    "sanitized": "the C++ library under sanitizers",
    "spills": "the machine code of the C++ library",
    "inline_asm": "the machine code of the Triton kernels",
}
_OF_THE_REPOSITORY = {"constraints", "examples", "install", "packaging", "shapes", "structure"}


def test_a_test_lies_where_what_it_tests_lies(repository: Path) -> None:
    """tests/a/test_b.py, or test_b_more.py, is of a/b.py or the folder b; or of the room a."""
    rooms = [repository / name for name in ("llmquant", "eval", "kernels", "benchmarks")]
    code = {_place(file, repository) for room in rooms for file in room.rglob("*") if file.suffix in (".py", ".cpp")}
    known = code | {place.rpartition("/")[0] for place in code}
    for test in sorted((repository / "tests").rglob("test_*.py")):
        folder = test.parent.relative_to(repository / "tests").as_posix()
        stem = test.stem.removeprefix("test_")
        if stem in _OF_A_ROOM or folder == stem or (folder == "." and stem in _OF_THE_REPOSITORY):
            continue
        words = stem.split("_")
        places = ["/".join((folder, "_".join(words[:end]))).removeprefix("./") for end in range(1, len(words) + 1)]
        here = [place for place in places if place in known or folder.endswith(f"/{stem}")]
        assert here, f"{test.relative_to(repository)} tests nothing that lies there"


def _place(file: Path, repository: Path) -> str:
    parts = file.relative_to(repository).with_suffix("").parts
    return "/".join(part for part in parts[parts[0] == "llmquant" :] if part != "src")
