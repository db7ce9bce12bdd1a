"""Kernels that the compile gates must not let through. Run as a script: prints what the gates say of each, as JSON.

A process of its own, because the tests beside it run Triton's interpreter.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from llmquant.kernels.bench.gates.compile import measure, recording
from llmquant.kernels.bench.gates.limits import Limits

GOOD = Limits(tensor="wgmma", a_in_registers=True, prmt=16, conversions=0, stores=4, waits=2, issue=125)


@triton.jit
def plain_conversion(x, weight, out, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Nibbles become floats by conversion, and operand B, which goes through shared memory."""
    rows, outputs, inputs = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, 128)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, k, 128):
        packed = tl.load(weight + outputs[None, :] * (k // 2) + ((first + inputs) // 2)[:, None])
        nibbles = (packed >> ((inputs % 2) * 4)[:, None]) & 15
        acc += tl.dot(tl.load(x + rows[:, None] * k + (first + inputs)[None, :]), nibbles.to(tl.bfloat16))
    tl.store(out + rows[:, None] * BLOCK_N + outputs[None, :], acc)


@triton.jit
def too_many_registers(x, weight, out, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Sums that do not fit into the registers of its warps."""
    rows, outputs, inputs = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, 32)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for first in range(0, k, 32):
        w = tl.load(weight + outputs[:, None] * k + (first + inputs)[None, :])
        values = tl.load(x + rows[:, None] * k + (first + inputs)[None, :])
        acc += tl.dot(w, tl.trans(values)) * 0.5
    tl.store(out + outputs[:, None] * BLOCK_M + rows[None, :], acc)


@triton.jit
def unknown_instruction(x, out):
    """Assembly that the assembler does not know, or another compiler cannot allocate."""
    lanes = tl.arange(0, 128)
    loaded = tl.load(x + lanes).to(tl.int32)
    result = tl.inline_asm_elementwise("{ mov.b32 $0, no_such_register; }", "=r,r", [loaded], tl.int32, True, 1)
    tl.store(out + lanes, result)


@triton.jit
def ptx_on_amd(x, out):
    """Half a register is not what AMD's compiler can hand to assembly: it says so, and goes on."""
    lanes = tl.arange(0, 128)
    halves = tl.inline_asm_elementwise("mov.b32 {$0, $1}, $2;", "=h,=h,r", [tl.load(x + lanes).to(tl.int32)],
                                       (tl.bfloat16, tl.bfloat16), True, 1)  # fmt: skip
    tl.store(out + lanes, halves[0] + halves[1])


def judged(arch: str, limits: Limits, launch: Callable[[], object]) -> list[str]:
    """What the gates say of the kernel that is launched."""
    with recording(arch) as cases:
        launch()
    (case,) = cases
    return limits.failures(measure(case))


def main() -> None:
    """Judge each, on sm_90 where nothing else is said."""
    x = torch.empty(256, 4096, dtype=torch.bfloat16, device="meta")
    packed = torch.empty(128, 2048, dtype=torch.uint8, device="meta")
    kernels: Any = plain_conversion, too_many_registers, unknown_instruction, ptx_on_amd
    plain, large, unknown, halves = kernels
    options = {"num_warps": 4, "enable_fp_fusion": True}
    if sys.argv[1:] == ["amd"]:  # a process of its own: the compiler of Triton 3.7 ends it
        print(json.dumps({"amd": judged("gfx942", Limits(), lambda: halves[(1,)](x, x, **options))}))
        return
    said = {
        "plain, 16 rows": judged("sm_90", GOOD, lambda: plain[(1,)](x, packed, x, 4096, 16, 128, **options)),
        "plain, 64 rows": judged("sm_90", GOOD, lambda: plain[(1,)](x, packed, x, 4096, 64, 128, **options)),
        "large": judged(
            "sm_90", Limits(), lambda: large[(1,)](x, x, x, 4096, 128, 128, num_warps=2, enable_fp_fusion=True)
        ),
        "large, shared": judged(
            "sm_89", Limits(), lambda: large[(1,)](x, x, x, 4096, 128, 128, num_stages=9, **options)
        ),
        "unknown": judged("sm_90", Limits(), lambda: unknown[(1,)](x, x, **options)),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
