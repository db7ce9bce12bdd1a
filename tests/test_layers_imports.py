"""The import contracts of pyproject.toml hold, and import-linter sees all modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp
import pytest


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
