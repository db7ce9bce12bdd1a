"""The C++ kernels against plain loops, under sanitizers and on an emulated ARM processor: see cpp/driver.cpp."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
]


def run(repository: Path, script: str) -> str:
    """What a script of cpp/ prints; skips where it says that tools are missing."""
    command = [repository / "tests" / "kernels" / "cpp" / script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    return done.stdout


def test_sanitizers_find_nothing(repository: Path) -> None:
    assert run(repository, "sanitize.sh").count("calls agree on scalar") == 2


def test_neon_has_the_bits_of_the_scalar_variant(repository: Path) -> None:
    assert "calls agree on scalar neon" in run(repository, "neon.sh")
