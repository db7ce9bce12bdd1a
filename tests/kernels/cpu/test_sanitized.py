"""The C++ kernels against plain loops, under sanitizers and on emulated processors: see cpp/driver.cpp."""

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
    with_dot_product, without = run(repository, "neon.sh").splitlines()
    assert "calls agree on scalar neon;" in with_dot_product
    assert "calls agree on scalar;" in without


def test_older_processors_meet_no_instruction_they_lack(repository: Path) -> None:
    with_avx2, without = run(repository, "older.sh").splitlines()
    assert "calls agree on scalar avx2;" in with_avx2
    assert "calls agree on scalar;" in without
