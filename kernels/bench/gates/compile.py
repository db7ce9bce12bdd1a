"""One case of the compile gates: recorded from a launch, compiled for a GPU that need not be there, and counted.

A case is recorded from the launch code itself: it runs on tensors without memory, for a device that is not there, and
instead of compiling, Triton hands over what it was about to compile. So the gates see the arguments, constants and
options that really run, and there is nothing to keep in step.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from llmquant.kernels.bench.gates import sass
from llmquant.kernels.bench.gates.sass import Instruction

Row = dict[str, Any]
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)")
_AMD_METADATA = re.compile(r"^\s+\.(\w+):\s+(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """One kernel with one set of constants for one architecture, as `triton.compile` takes it."""

    module: str  # of the kernel
    kernel: str  # its name there
    arch: str  # "sm_90" or "gfx942"
    signature: dict[str, str]  # types of its arguments by name
    constexprs: dict[tuple[int, ...], Any]  # values of its constants by path, which is a position
    attrs: dict[tuple[int, ...], Any]  # what is known of its arguments, such as that 16 divides them, by path
    options: dict[str, Any]  # of the compiler
    name: str = ""  # says which case it is, such as "int4-g128 m=1"

    @property
    def constants(self) -> dict[str, Any]:
        """Values of its constants by name."""
        names = list(self.signature)
        return {names[path[0]]: value for path, value in self.constexprs.items()}

    @property
    def config(self) -> str:
        """How the work is cut, as one word."""
        at, warps, stages = self.constants, self.options["num_warps"], self.options["num_stages"]
        blocks = f"{at['BLOCK_M']}x{at['BLOCK_N']}" if "BLOCK_N" in at else ""
        split = f"/{at['SPLIT_K']}" if at.get("SPLIT_K", 1) > 1 else ""
        return f"{blocks}{split} w{warps} s{stages}".strip()


class _Absent:
    """A device that is not there, as far as Triton asks for it before it compiles."""

    def __init__(self, arch: str) -> None:
        self.arch = arch

    def get_current_target(self) -> Any:
        return target(self.arch)

    def get_current_device(self) -> str:
        return self.arch  # kernels keep what they know of a device by its number

    def get_current_stream(self, device: str) -> int:  # noqa: ARG002 - Triton's interface
        return 0


@contextmanager
def recording(arch: str) -> Iterator[list[Case]]:
    """Launches of Triton kernels inside become cases, without names yet; nothing is compiled or run."""
    from triton import knobs
    from triton.runtime.driver import driver

    cases: list[Case] = []

    def keep(*, fn: Any, compile: Any, **_: Any) -> bool:
        options = json.loads(compile["specialization_data"])["options"]
        options = {name: _tuples(value) for name, value in options.items()}
        made = compile["signature"], compile["constants"], compile["configs"][0], options
        cases.append(Case(fn.module, fn.name, arch, *made))
        return True  # it is compiled already, as far as Triton knows

    before, hook = driver._active, knobs.runtime.jit_cache_hook
    driver.set_active(_Absent(arch))  # pyright: ignore[reportArgumentType]
    knobs.runtime.jit_cache_hook = keep
    try:
        yield cases
    finally:
        driver._active, knobs.runtime.jit_cache_hook = before, hook


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def target(arch: str) -> Any:
    """Triton's name for "sm_90" or "gfx942"."""
    from triton.backends.compiler import GPUTarget

    return (
        GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    )


def measure(case: Case) -> Row:
    """Compile a case, in a process that does not run Triton's interpreter, and count.

    That makes a row of the JSON of the gates, without limits; with `error` and little else where the compiler failed.
    """
    import triton
    from triton.compiler import ASTSource

    row: Row = {"kernel": case.kernel, "case": case.name, "config": case.config, "arch": case.arch}
    row["warps"] = case.options["num_warps"]
    source = ASTSource(getattr(import_module(case.module), case.kernel), case.signature, case.constexprs, case.attrs)
    began = time.perf_counter()
    with _messages() as messages, redirect_stdout(io.StringIO()):  # Triton prints all of the PTX that fails
        try:
            made = triton.compile(source, target=target(case.arch), options=dict(case.options))
        except Exception as error:  # noqa: BLE001 - whatever stops a compiler is a result
            return row | {"error": _causes(error)}
    row["seconds"] = round(time.perf_counter() - began, 2)
    # LLVM goes on after some errors, such as registers that it cannot allocate, with code that is wrong.
    wrong = [line for line in messages if line.startswith("error:")]
    if wrong:
        return row | {"error": f"{len(wrong)} messages such as {wrong[0]!r}"}
    row["shared"] = made.metadata.shared
    return row | (_amd(made.asm["amdgcn"]) if "amdgcn" in made.asm else _nvidia(made.asm, case))


@contextmanager
def _messages() -> Iterator[list[str]]:
    """What native code writes to the standard error inside; the lines are there at the end."""
    lines: list[str] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines += file.read().splitlines()


def _causes(error: BaseException | None) -> str:
    """An error of a compiler, innermost first: Triton wraps it once for each function that it was inlined into."""
    words: list[str] = []
    while error is not None:
        words.insert(0, f"{type(error).__name__}: {error}".strip())
        error = error.__cause__
    return "\n".join(words)[:2000]


def _nvidia(asm: Any, case: Case) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(asm["cubin"])
        code = sass.parse(_cuobjdump("-sass", file))
        usage = _USAGE.search(_cuobjdump("-res-usage", file))
    assert usage is not None
    registers, stack, local = (int(number) for number in usage.groups())
    counts = sass.histogram(code)
    wgmma = [one for one in code if sass.WGMMA.match(one.opcode)]
    return {
        "registers": registers,
        "spills": sass.count(counts, "LDL", "STL"),
        "stack": stack + local,
        "wgmma": len(wgmma),
        "wgmma_a_in_registers": sum(one.a_in_registers for one in wgmma),
        "mma_sync": sum(bool(sass.MMA_SYNC.match(one.opcode)) for one in code),
        "tcgen05": sum(bool(sass.TCGEN05.match(one.opcode)) for one in code),
        "prmt": sass.count(counts, "PRMT"),
        "instructions": len(code),
        "loop": _loop(code, case),
    }


def _amd(asm: str) -> Row:
    code = sass.parse_amd(asm)
    facts = {name: int(number) for name, number in _AMD_METADATA.findall(asm)}
    return {
        "registers": facts["vgpr_count"],
        "scalar_registers": facts["sgpr_count"],
        "spills": facts["vgpr_spill_count"] + facts["sgpr_spill_count"],
        "stack": facts["private_segment_fixed_size"],
        "mfma": sum(bool(sass.MFMA.match(one.opcode)) for one in code),
        "instructions": len(code),
        "loop": _loop(code, None),
    }


def _loop(code: list[Instruction], case: Case | None) -> Row | None:
    """The loop over the inputs; None if there is none."""
    loop = sass.hot_loop(code)
    if not loop:
        return None
    counts = sass.histogram(loop)
    row: Row = {"instructions": len(loop), "tensor": sum(one.tensor for one in loop)}
    if case is not None:
        row |= {
            "local": sass.count(counts, "LDL", "STL"),
            "waits": sass.count(counts, "WARPGROUP.DEPBAR"),
            "stores": sass.count(counts, "STS", "STSM"),
            "conversions": sass.count(counts, "I2F", "I2FP"),
            "prmt": sass.count(counts, "PRMT"),
        }
        weights = weights_per_turn(loop, case)
        row["weights"] = weights
        row["issue"] = round(1000 * len(loop) * case.options["num_warps"] / weights, 1) if weights else None
    return row | {"opcodes": counts}


def weights_per_turn(loop: list[Instruction], case: Case) -> int:
    """Weights that all warps of a program together multiply in one turn of a loop, by its tensor-core instructions."""
    block_m, warps = case.constants.get("BLOCK_M", 0), case.options["num_warps"]
    products = 0
    for one in loop:
        if sass.TCGEN05.match(one.opcode):  # one thread issues it for the program; its shape is known at run time only
            inputs = 256 // (8 if one.opcode.startswith("UTCI") else 16)
            products += min(case.constants.get("BLOCK_N", 0), 128) * block_m * inputs
        elif one.tensor:  # wgmma is issued by four warps together
            products += (one.products or 0) * (warps // 4 if sass.WGMMA.match(one.opcode) else warps)
    return products // block_m if block_m else 0


def _cuobjdump(option: str, file: Path) -> str:
    from triton import knobs

    done = subprocess.run([knobs.nvidia.cuobjdump.path, option, file], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr  # the usage is in one or the other
