"""What keeps the unusual layout working: see docs/architecture.md, and tests/test_install.py for the installs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

import llmquant
from llmquant.kernels.cpu import native
from llmquant.recipe.presets import file_names, preset_names
from llmquant.recipe.quality import QUALITIES

LINKS = {"kernels": "../kernels", "eval": "../eval", "recipes": "../recipes", "demo_model": "../examples/demo_model"}


def tracked(repository: Path, *patterns: str) -> dict[str, str]:
    """Files that git tracks, with their modes."""
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--stage", *patterns]
    listed = subprocess.run(command, cwd=repository, capture_output=True, check=True).stdout.decode()
    return {entry.split("\t")[1]: entry.split()[0] for entry in filter(None, listed.split("\0"))}


def test_top_level_kernels_is_no_package(repository: Path) -> None:
    """With an __init__.py it would shadow the Hugging Face package `kernels`, and transformers would not import."""
    assert not (repository / "kernels" / "__init__.py").exists()
    assert (repository / "eval" / "__init__.py").exists()
    assert (repository / "recipes" / "__init__.py").exists()


@pytest.mark.parametrize("name", LINKS)
def test_links_are_relative_and_tracked(repository: Path, name: str) -> None:
    link = repository / "llmquant" / name
    assert link.is_symlink()
    assert os.readlink(link) == LINKS[name]
    assert tracked(repository, f"llmquant/{name}") == {f"llmquant/{name}": "120000"}


def test_no_other_links(repository: Path) -> None:
    links = [name for name, mode in tracked(repository).items() if mode == "120000"]
    assert sorted(links) == sorted(f"llmquant/{name}" for name in LINKS)


def test_import_kernels_is_not_ours(repository: Path) -> None:
    """From the root of the checkout, where Python looks first."""
    if not _has_hub_kernels():
        pytest.skip("the Hugging Face package `kernels` is not installed")
    code = "import kernels; print(kernels.get_kernel)"
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True, capture_output=True)


def _has_hub_kernels() -> bool:
    spec = importlib.util.find_spec("kernels")
    return spec is not None and spec.origin is not None


def test_every_preset_ships(repository: Path) -> None:
    """In the package as it is imported, in git, and by name."""
    for folder, names in (("", file_names()), ("quality", QUALITIES)):
        in_git = {Path(name).stem for name in tracked(repository, f":(glob)recipes/{folder and folder + '/'}*.yaml")}
        in_package = files("llmquant.recipes").joinpath(folder).iterdir()
        assert in_git == {Path(entry.name).stem for entry in in_package if entry.name.endswith(".yaml")} == set(names)


def test_library_and_loader_agree(repository: Path) -> None:
    source = (repository / "kernels" / "cpu" / "src" / "api.cpp").read_text()
    assert re.findall(r"#define LLMQUANT_ABI (\d+)", source) == [str(native.ABI)]
    header = (repository / "kernels" / "cpu" / "src" / "isa.h").read_text()
    assert tuple(re.findall(r"(\w+) = \d", header)) == native.ISAS


def test_dependencies_are_pinned(repository: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    named = {re.split(r"[^A-Za-z0-9_-]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    pins = (repository / "constraints.txt").read_text()
    pinned = {name.lower() for name in re.findall(r"^([A-Za-z0-9-]+)==", pins, re.MULTILINE)}
    assert len(named) > 15
    assert named <= pinned
    assert re.search(r"^torch==2\.13\.0$", pins, re.MULTILINE)


def test_no_large_files(repository: Path) -> None:
    large = [name for name in tracked(repository) if (repository / name).stat().st_size > 500_000]
    assert [name for name in large if name != "examples/demo_model/model.safetensors"] == []


def test_what_the_package_offers_is_seen_and_typed() -> None:
    assert {"quantize", "load", "evaluate", "push_to_hub", "presets", "__version__"} <= set(dir(llmquant))
    for name in llmquant.__all__:
        assert getattr(llmquant, name).__module__.startswith("llmquant.")
    assert llmquant.__version__ == version("llmquant")
    assert llmquant.presets().keys() == set(preset_names())
    assert (files("llmquant") / "py.typed").is_file()
