"""One library serves every x86-64 processor: wide instructions stay in the files that are chosen at run time.

What the linker keeps is decided by objects, so those of the newest build under build/ are read, not the library, which
has no names left where it was installed from a wheel.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from llmquant.kernels.cpu import native

OBJECTS = "CMakeFiles/llmquant_cpu.dir/kernels/cpu/src"
FEATURE = re.compile(r"avx2|avx512")
RUN = """
import hashlib
import torch
from llmquant.kernels.cpu import native
from llmquant.kernels.cpu import ops as cpu_ops
from llmquant.kernels.cpu import weight as cpu_weight
from llmquant.kernels.product import PackedWeight
from llmquant.numerics.pack import pack
torch.manual_seed(0)
digest = hashlib.sha256()
for bits, cols, groups in ((4, 192, 3), (8, 300, 1), (3, 256, 2)):
    codes = torch.randint(-(1 << bits - 1), 1 << bits - 1, (70, cols), dtype=torch.int8)
    packed, scale = pack(codes, bits), torch.randn(70, groups)
    weight = cpu_weight.prepare(PackedWeight(packed, scale, None, bits, cols))
    for dtype in native.FLOATS:
        x = torch.randn(7, cols).to(dtype)
        dense = native.unpack_rows(packed, scale, None, bits=bits, in_features=cols, dtype=dtype)
        results = [cpu_ops.linear(x, weight, None, 70, exact) for exact in (True, False)]
        for result in (*results, dense):
            digest.update(result.view(torch.uint8).numpy().tobytes())
print(native.isa(), digest.hexdigest())
"""


@cache
def objects(repository: Path) -> dict[str, Path]:
    """Object files of an optimized build that is newer than the sources, by the name of their source."""
    sources = [path for path in (repository / "kernels" / "cpu" / "src").iterdir() if "neon" not in path.name]
    newest = max(source.stat().st_mtime for source in sources)
    for folder in (repository / "build").glob(f"*/{OBJECTS}"):
        found = {path.name.removesuffix(".cpp.o"): path for path in folder.glob("*.cpp.o")}
        optimized = "CMAKE_BUILD_TYPE:STRING=Release" in (folder.parents[4] / "CMakeCache.txt").read_text()
        # An object is made again only where its own sources changed, so the last one tells when all were looked at.
        if optimized and "linear_avx2" in found and max(path.stat().st_mtime for path in found.values()) >= newest:
            return found
    return {}


@pytest.fixture
def built(repository: Path) -> dict[str, Path]:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip(f"x86-64 only; this is {platform.machine()}")
    if shutil.which("objdump") is None or shutil.which("nm") is None:
        pytest.skip("no objdump and nm (binutils)")
    return objects(repository) or pytest.skip("no Release build newer than the sources in build/: make native")


def registers(path: Path) -> str:
    """The widest registers an object's code names: xmm, ymm or zmm; k masks and registers from 16 on count as zmm."""
    code = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
    if re.search(r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])\b", code.stdout):
        return "zmm"
    # VEX instructions need AVX even on xmm registers: those, and only those, begin with v.
    return "ymm" if re.search(r"%ymm|\tv[a-z0-9]+ .*%xmm", code.stdout) else "xmm"


def test_wide_registers_only_in_files_chosen_at_run_time(built: dict[str, Path]) -> None:
    width = {name: registers(path) for name, path in built.items()}
    wanted = {}
    for name in built:
        wanted[name] = "zmm" if "avx512" in name else "ymm" if "avx2" in name else "xmm"
    assert width == wanted
    assert set(width.values()) == {"xmm", "ymm", "zmm"}


def test_no_function_is_shared_between_instruction_sets(built: dict[str, Path]) -> None:
    """Of a function that two objects define the linker keeps one, maybe the one compiled for AVX-512."""
    owners: dict[str, set[str]] = {}
    for name, path in built.items():
        listed = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        # W, V and u are what more than one object may define.
        for symbol in re.findall(r"^\S+ [WVuwv] (\S+)$", listed, re.MULTILINE):
            owners.setdefault(symbol, set()).add(name)
    wide = {symbol: names for symbol, names in owners.items() if any(FEATURE.search(name) for name in names)}
    assert wide == {}


@pytest.mark.skipif(len(native.supported()) < 2, reason="one instruction set only")
def test_every_override_gives_the_same_bits() -> None:
    running = {}
    for name in native.supported():
        environment = {**os.environ, "LLMQUANT_CPU_ISA": name, "OMP_NUM_THREADS": "1"}
        running[name] = subprocess.Popen(
            [sys.executable, "-c", RUN], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    digests = set()
    for name, process in running.items():
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        isa, digest = out.split()
        assert isa == name
        digests.add(digest)
    assert len(digests) == 1
