"""The import contracts of pyproject.toml hold, and import-linter sees all modules."""

from __future__ import annotations

import ast
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
