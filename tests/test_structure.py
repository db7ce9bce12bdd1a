"""The house is as it says: imports, private names, docs and the places of tests."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
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
    """Submodules of transformers, and attributes with an underscore that its models have, belong to one folder."""
    private = _private_names()
    assert {"_keys_to_ignore_on_save", "_tied_weights_keys", "_is_hf_initialized"} <= private
    for file in _ours(repository):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            touched = [name for name in names if name.startswith("transformers.")]
            if isinstance(node, ast.Attribute) and node.attr in private:
                touched.append(node.attr)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
                touched += [arg.value for arg in node.args if isinstance(arg, ast.Constant) and arg.value in private]
            where = f"{file.relative_to(repository)}:{getattr(node, 'lineno', 0)}"
            assert not touched, f"{where} touches {touched[0]} of transformers; that belongs into llmquant/compat"


def _private_names() -> set[str]:
    source = find_spec("transformers.modeling_utils")
    assert source is not None
    tree = ast.parse(Path(str(source.origin)).read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    return {name for name in names if not name.startswith("__")} - set(dir(nn.Module()))


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
