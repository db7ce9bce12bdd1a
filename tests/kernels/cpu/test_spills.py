"""The inner loops of the built library keep what they sum in registers.

Left alone, GCC moves all multiplications of a loop ahead of the additions and puts the products on the stack, more than
one access for each multiplication; the C++ forbids it where it sums (`in_order`). Nothing else would notice: the bits
are the same, the time is not.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from llmquant.kernels.cpu import native

pytestmark = pytest.mark.skipif(native.library() is None, reason="the C++ kernels are not installed")

# Compilers whose registers were counted; others may need another limit, or none.
COMPILERS = ("12",)
# Stack accesses for each multiplication; it was 0.4 to 1.8, mostly above 1. Sums of the wider kind, touched once in a
# span of 32 inputs, may lie there, and some codes.
MOST = 0.5
INSTRUCTION = re.compile(r"^ *([0-9a-f]+):\t(\S+) *(.*)$", re.MULTILINE)
MULTIPLY = re.compile(r"vpmadd|vpdp")


@pytest.fixture(scope="module")
def built() -> Path:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip(f"x86-64 only; this is {platform.machine()}")
    if shutil.which("objdump") is None:
        pytest.skip("no objdump (binutils)")
    path = next(Path(str(e)) for e in files("llmquant.kernels").iterdir() if e.name.startswith("libllmquant_cpu"))
    comment = subprocess.run(["objdump", "-s", "-j", ".comment", path], capture_output=True, text=True, check=False)
    text = "".join(re.findall(r"^ \S+ .{35}  (.*)$", comment.stdout, re.MULTILINE))
    versions = re.findall(r"GCC: \(.*?\) (\d+)\.", text)
    if not versions or not set(versions) <= set(COMPILERS):
        pytest.skip(f"counted for GCC {', '.join(COMPILERS)} only; the library is of {text.strip('.') or 'unknown'}")
    return path


def inner_loops(code: str) -> list[list[tuple[int, str, str]]]:
    """Instructions (address, name, operands) between a jump back and its target, without another such jump inside."""
    found = [(int(a, 16), name, rest) for a, name, rest in INSTRUCTION.findall(code)]
    place = {address: i for i, (address, _, _) in enumerate(found)}
    jumps = []
    for i, (address, name, rest) in enumerate(found):
        target = re.match(r"[0-9a-f]+", rest) if name.startswith("j") else None
        if target and int(target[0], 16) <= address and int(target[0], 16) in place:
            jumps.append((place[int(target[0], 16)], i))
    inner, latest = [], -1
    # Of loops that enclose each other the innermost ends first.
    for begin, end in sorted(jumps, key=lambda jump: (jump[1], -jump[0])):
        if begin > latest:
            inner.append(found[begin : end + 1])
            latest = begin
    # A jump across a return goes to a part of a function that lies elsewhere.
    return [loop for loop in inner if not any(name.startswith("ret") for _, name, _ in loop)]


def counts(loop: list[tuple[int, str, str]]) -> tuple[int, int]:
    """Multiplications, and accesses of vectors to the stack."""
    multiplied = sum(bool(MULTIPLY.match(name)) for _, name, _ in loop)
    stacked = sum(name.startswith("v") and bool(re.search(r"\(%r[sb]p", rest)) for _, name, rest in loop)
    return multiplied, stacked


def test_sums_stay_in_registers(built: Path) -> None:
    code = subprocess.run(["objdump", "-d", "--no-show-raw-insn", built], capture_output=True, text=True, check=True)
    loops = {loop[0][0]: counts(loop) for loop in inner_loops(code.stdout)}
    loops = {address: count for address, count in loops.items() if count[0]}
    assert len(loops) > 40, "two accuracies, two widths of codes, several heights, three instruction sets"
    spilling = {f"{address:x}": count for address, count in loops.items() if count[1] > MOST * count[0]}
    assert not spilling, "(multiplications, stack accesses) of the loop at each address"


LOOP = """
 10:	mov    %rsi,%rax
 18:	cltq
 20:	vpmaddubsw %ymm1,%ymm2,%ymm3
 24:	vmovdqa %ymm3,0x40(%rsp)
 28:	vpmaddwd 0x60(%rsp),%ymm2,%ymm3
 30:	jne    20 <f+0x10>
 38:	jb     10 <f>
 40:	vmovdqa %ymm3,0x40(%rsp)
"""


def test_how_it_counts() -> None:
    (loop,) = inner_loops(LOOP)
    assert [address for address, _, _ in loop] == [0x20, 0x24, 0x28, 0x30]
    assert counts(loop) == (2, 2)
