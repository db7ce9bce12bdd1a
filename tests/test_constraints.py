"""One set of pins for every Python, resolved against the registry's own packages (pytest -m slow)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

MINORS = (10, 11, 12, 13)
_WAIT = 1800  # seconds, for a slow registry
_UNREACHABLE = re.compile(r"NewConnectionError|ConnectTimeout|Temporary failure in name resolution|ProxyError")
_OF_CUDA = re.compile(r"^(nvidia|cuda|triton)")


def pins(repository: Path) -> dict[str, str]:
    """What constraints.txt says: version by normalized name, of the lines without a marker."""
    found = re.findall(r"^([\w.-]+)==([\w.]+)$", (repository / "constraints.txt").read_text(), re.MULTILINE)
    return {_normalized(name): version for name, version in found}


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_kernels_name_the_pinned_triton(repository: Path) -> None:
    """The gates were seen with the version that users get, and the extra asks for no older one than was seen."""
    from llmquant.kernels.bench.gates.cases import TRITON_SEEN

    assert pins(repository)["triton"] in TRITON_SEEN
    oldest = min(TRITON_SEEN, key=lambda version: [int(part) for part in version.split(".")])
    asked = re.findall(r'"triton>=([\d.]+)', (repository / "pyproject.toml").read_text())
    assert asked == [oldest.rpartition(".")[0]] * 2


@pytest.fixture(scope="module")
def project(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip needs to know our requirements; nothing is built."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy2(repository / name, folder / name)
    return folder


def interpreter(minor: int) -> str:
    """Some Python 3.`minor` of this machine, on PATH or of pyenv."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [shutil.which(f"python3.{minor}"), *sorted(map(str, versions.glob(f"3.{minor}.*/bin/python")))]
    for candidate in filter(None, candidates):
        asked = subprocess.run([candidate, "-c", "import sys, venv; print(sys.version_info[1])"], capture_output=True)
        if asked.stdout.split() == [str(minor).encode()]:
            return candidate
    pytest.skip(f"no Python 3.{minor} on this machine")


def run(*command: str | Path) -> None:
    """Run pip as on a machine that nobody has configured: no settings of the system, the user or the environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    clean |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(list(map(str, command)), env=clean, capture_output=True, text=True, timeout=_WAIT)
    if done.returncode and _UNREACHABLE.search(done.stdout + done.stderr):
        pytest.skip("the package registry cannot be reached")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def resolve(python: Path, project: Path, *more: str) -> dict[str, Any]:
    """What pip would install, by normalized name; only metadata are loaded where the registry allows it."""
    report = project / "report.json"
    command = [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--use-feature=fast-deps", "--quiet"]
    run(*command, "--report", report, "-c", project / "constraints.txt", *more, f"{project}[dev,gpu,eval,data]")
    return {_normalized(one["metadata"]["name"]): one["metadata"] for one in json.loads(report.read_text())["install"]}


def as_cpu_build(torch: dict[str, Any], folder: Path) -> None:
    """A wheel with the metadata of torch's CPU build, which needs neither CUDA nor Triton, and nothing in it."""
    version = torch["version"] + "+cpu"
    needs = [f"Requires-Dist: {line}" for line in torch["requires_dist"] if not _OF_CUDA.match(line)]
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA", "\n".join(["Metadata-Version: 2.1", "Name: torch", f"Version: {version}", *needs])
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
@pytest.mark.parametrize("minor", MINORS)
def test_pins_resolve(project: Path, repository: Path, tmp_path: Path, minor: int) -> None:
    """With the registry's torch, which brings CUDA and Triton, and with a CPU build; every pin is what is taken."""
    python = tmp_path / "env" / "bin" / "python"
    run(interpreter(minor), "-m", "venv", tmp_path / "env")
    run(python, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25")
    found = resolve(python, project)
    wanted = {name: version for name, version in pins(repository).items() if name in found}
    assert {"torch", "triton"} <= wanted.keys()
    assert {name: found[name]["version"] for name in wanted} == wanted
    assert any(_OF_CUDA.match(name) for name in found if name != "triton")
    as_cpu_build(found["torch"], tmp_path)
    on_cpu = resolve(python, project, "--find-links", str(tmp_path))
    assert on_cpu["torch"]["version"] == found["torch"]["version"] + "+cpu"
    assert on_cpu["triton"]["version"] == wanted["triton"]
