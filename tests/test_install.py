"""Every way to install: wheel, editable, sdist to wheel, pure on request, pure for want of a compiler (pytest -m slow).

Each goes into an environment of its own that borrows the dependencies of the running one, so only llmquant is built.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from llmquant.kernels.cpu import native

pytestmark = pytest.mark.slow

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
PROBE = """
import llmquant, torch
from importlib.resources import files
from llmquant.kernels.cpu import native
from llmquant.nn.linear import PackedLinear
from llmquant.spec import Scheme
PackedLinear(64, 8, Scheme.parse("int4-g32"))(torch.zeros(1, 64))
presets = sorted(entry.name for entry in files("llmquant.recipes").iterdir() if entry.name.endswith(".yaml"))
print(native.isa(), llmquant.__file__, len(presets), sep="|")
"""


@pytest.fixture(scope="module")
def source(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files as they are now, without build results."""
    folder = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (repository / name).exists():
            shutil.copy2(repository / name, folder / name, follow_symlinks=False)
    return folder


def pip(*arguments: str | Path, cwd: Path, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def make_environment(folder: Path) -> Path:
    """A virtual environment that sees the packages of the running one, but not its llmquant; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    scheme = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
    # Only paths are taken from this line: the .pth files there, editable installs among them, are not read.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def probe(python: Path, cwd: Path) -> tuple[str, Path, int, str]:
    """What an installed llmquant says: instruction set, its place, number of presets; and standard error."""
    done = subprocess.run([python, "-c", PROBE], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    isa, place, presets = done.stdout.strip().split("|")
    return isa, Path(place), int(presets), done.stderr


def build(kind: str, source: Path, out: Path, **environment: str) -> Path:
    """A wheel from a folder or an sdist, or an sdist."""
    if kind == "wheel":
        pip("wheel", "--no-deps", "-w", out, source, cwd=out, **environment)
    else:
        subprocess.run(
            [sys.executable, "-m", "build", "--sdist", "-o", out, source], cwd=out, check=True, capture_output=True
        )
    (built,) = out.iterdir()
    return built


def check_wheel(wheel: Path, repository: Path, *, compiled: bool) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    libraries = [name for name in names if name.endswith((".so", ".dylib"))]
    assert wheel.name.endswith("-py3-none-any.whl") is not compiled
    assert [name.startswith("llmquant/kernels/libllmquant_cpu") for name in libraries] == [True] * compiled
    wanted = {
        f"llmquant/{name}"
        for folder in ("kernels", "eval", "recipes")
        for name in _tracked(repository, folder)
        if not name.startswith("kernels/cpu/src/")
    }
    wanted |= {f"llmquant/{name.removeprefix('examples/')}" for name in _tracked(repository, "examples/demo_model")}
    wanted |= set(_tracked(repository, "llmquant"))
    wanted = {
        name for name in wanted if not name.endswith("demo_model/train.py") and not (repository / name).is_symlink()
    }
    assert {name for name in names if name.startswith("llmquant/")} == wanted | set(libraries)
    assert {name.split("/")[0] for name in names} == {"llmquant", "-".join(wheel.name.split("-")[:2]) + ".dist-info"}


def _tracked(repository: Path, folder: str) -> list[str]:
    command = ["git", "ls-files", "-z", folder]
    listed = subprocess.run(command, cwd=repository, capture_output=True, check=True).stdout
    return [name for name in listed.decode().split("\0") if name and (repository / name).exists()]


def presets_of(repository: Path) -> int:
    return len([name for name in _tracked(repository, "recipes") if name.endswith(".yaml")])


@needs_compiler
def test_wheel(source: Path, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    wheel = build("wheel", source, tmp_path / "out")
    check_wheel(wheel, repository, compiled=True)
    python = make_environment(tmp_path / "env")
    pip("--python", python, "install", "--no-deps", "--ignore-installed", wheel, cwd=tmp_path)
    isa, place, presets, errors = probe(python, tmp_path)
    assert isa == (native.supported() or [isa])[-1]
    assert place.is_relative_to(tmp_path / "env")
    assert presets == presets_of(repository)
    assert "without its C++ kernels" not in errors
    script = tmp_path / "env" / "bin" / "llmquant"
    assert "llmquant.cli" in script.read_text()


@needs_compiler
def test_editable(source: Path, repository: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "checkout", symlinks=True)
    python = make_environment(tmp_path / "env")
    pip("--python", python, "install", "--no-deps", "--ignore-installed", "-e", tmp_path / "checkout", cwd=tmp_path)
    for folder in (tmp_path, tmp_path / "checkout"):
        isa, place, presets, errors = probe(python, folder)
        assert isa in native.ISAS
        assert place == tmp_path / "checkout" / "llmquant" / "__init__.py"
        assert presets == presets_of(repository)
        assert "without its C++ kernels" not in errors
    # New modules and presets are seen without installing again.
    (tmp_path / "checkout" / "kernels" / "brand_new.py").write_text("VALUE = 1\n")
    (tmp_path / "checkout" / "recipes" / "brand-new.yaml").write_text("version: 1\n")
    subprocess.run([python, "-c", "import llmquant.kernels.brand_new"], cwd=tmp_path, check=True)
    assert probe(python, tmp_path)[2] == presets_of(repository) + 1


@needs_compiler
def test_sdist_to_wheel(source: Path, repository: Path, tmp_path: Path) -> None:
    for name in ("sdist", "wheel"):
        (tmp_path / name).mkdir()
    sdist = build("sdist", source, tmp_path / "sdist")
    wheel = build("wheel", sdist, tmp_path / "wheel")
    check_wheel(wheel, repository, compiled=True)
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/kernels/cpu/src/api.cpp") for name in archive.getnames())
    python = make_environment(tmp_path / "env")
    pip("--python", python, "install", "--no-deps", "--ignore-installed", wheel, cwd=tmp_path)
    assert probe(python, tmp_path)[0] in native.ISAS


@pytest.mark.parametrize("environment", [{"LLMQUANT_PURE": "1"}, {"CXX": "/bin/false"}], ids=["asked", "no-compiler"])
def test_pure(source: Path, repository: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "out").mkdir()
    wheel = build("wheel", source, tmp_path / "out", **environment)
    check_wheel(wheel, repository, compiled=False)
    python = make_environment(tmp_path / "env")
    pip("--python", python, "install", "--no-deps", "--ignore-installed", wheel, cwd=tmp_path)
    isa, _, presets, errors = probe(python, tmp_path)
    assert isa == "torch"
    assert presets == presets_of(repository)
    assert errors.count("without its C++ kernels") == 1
