"""The kernels pass the compile gates, and kernels that should not do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmquant.kernels.bench.gates.cases import QUICK_ARCHS

ROOT = Path(__file__).resolve().parents[4]
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is not installed: pip install 'llmquant[gpu]'"
)


def script(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script past the interpreter, which this process may run, and past Triton's cache."""
    hidden = ("TRITON_INTERPRET", "LLMQUANT_GPU_KERNELS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | variables
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@needs_triton
@pytest.mark.parametrize("archs", [("sm_90",), pytest.param(QUICK_ARCHS, marks=pytest.mark.slow)], ids="+".join)
def test_kernels_pass(tmp_path: Path, archs: tuple[str, ...]) -> None:
    """The most important cases; about a minute on two cores for all three."""
    file = tmp_path / "gates.json"
    done = script("-m", "llmquant.kernels.bench.gates", "--quick", "--arch", *archs, "--json", str(file))
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    rows = json.loads(file.read_text())["rows"]
    assert {row["arch"] for row in rows} == set(archs)
    products, others = {"linear_a16", "linear_w4a8", "linear_w8a8"}, {"quantize_blocks", "quantize_rows"}
    assert {row["kernel"] for row in rows} == products | others | {"dequantize_tile", "round_block"}
    on_hopper = [row for row in rows if row["arch"] == "sm_90" and row["kernel"] in ("linear_a16", "linear_w4a8")]
    assert len(on_hopper) > 15
    assert all(row["wgmma"] and row["wgmma"] == row["wgmma_a_in_registers"] for row in on_hopper)


@needs_triton
def test_bad_kernels_fail(tmp_path: Path) -> None:
    done = script("tests/kernels/gpu/bad_kernels.py", TRITON_CACHE_DIR=str(tmp_path), TRITON_DEFAULT_FP_FUSION="1")
    assert done.returncode == 0, done.stderr[-2000:]
    said = {name: "; ".join(failures) for name, failures in json.loads(done.stdout).items()}
    for of, words in {
        "plain, 16 rows": ("no wgmma", "integer conversions", "stores to shared memory", "for 1000 weights"),
        "plain, 64 rows": ("from registers in 0 of 8 wgmma",),
        "large": ("spills", "bytes of stack"),
        "large, shared": ("bytes of shared memory",),
        "unknown": ("does not compile", "no_such_register"),
    }.items():
        for word in words:
            assert word in said[of]


@needs_triton
def test_what_amd_cannot_compile_fails(tmp_path: Path) -> None:
    """With a word of the compiler's; Triton before 3.8 ends the process, which no one takes for a pass either."""
    done = script("tests/kernels/gpu/bad_kernels.py", "amd", TRITON_CACHE_DIR=str(tmp_path))
    if done.returncode:
        assert version("triton") < "3.8"
        assert done.stdout == ""
    else:
        (failure,) = json.loads(done.stdout)["amd"]
        assert "does not compile" in failure
        assert "could not allocate output register" in failure
