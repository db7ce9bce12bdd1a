"""What a compiled kernel may be, and whether it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from llmquant.kernels.bench.gates.compile import Case

Row = dict[str, Any]


@dataclass(frozen=True)
class Card:
    """What the limits need to know of an architecture."""

    tensor: str  # which instructions multiply 16-bit matrices
    processors: int  # multiprocessors of the card that dispatch.py is asked about
    shared: int  # KB of shared memory of a multiprocessor
    bytes: float  # that a multiprocessor reads from memory in a clock, at 0.9 of the data sheet's rate
    flops: int  # 16-bit, with sums in float32, of a multiprocessor in a clock; int8 has twice as many
    slack: float = 1.0  # how much more its loops may issue than there are slots for
    pdl: bool = False  # whether a launch may overlap with the one in front
    hip: bool = False  # whether the compiler is AMD's


#: A100, RTX 4090, H200, B200, RTX 5090, MI300X. Rates are from their data sheets, sizes from the CUDA programming guide
#: (table of compute capabilities) and the CDNA 3 ISA.
CARDS = {
    "sm_80": Card("mma_sync", 108, 164, 12.0, 2048),
    "sm_89": Card("mma_sync", 128, 100, 2.9, 512),
    "sm_90": Card("wgmma", 132, 228, 18.6, 4096, pdl=True),
    "sm_100": Card("tcgen05", 148, 228, 26.3, 8192, slack=2.2, pdl=True),  # Hopper's loop, and twice the memory rate
    "sm_120": Card("mma_sync", 170, 100, 3.9, 512, pdl=True),
    "gfx942": Card("mfma", 304, 64, 8.0, 2048, hip=True),
}
_SCHEDULERS = 4  # of a multiprocessor; each issues an instruction of one warp in a clock
#: Loops that issue more than there are slots for, as a multiple: known, and not solved. Sums are scaled once for each
#: unit, which is much for small units and many rows. By kernel, unit and rows of a block.
_OVER = {
    ("linear_a16", 64, 64): 1.1,
    ("linear_a16", 32, 16): 1.25,
    ("linear_a16", 32, 32): 1.3,
    ("linear_a16", 32, 64): 1.8,
    ("linear_a16", 32, 128): 1.2,
    ("linear_w4a8", 128, 64): 1.1,
    ("linear_w4a8", 128, 128): 1.75,
    ("linear_w4a8", 32, 16): 1.5,
    ("linear_w4a8", 32, 64): 3.0,
}
#: Instructions of loops that send weights through shared memory, as a multiple of what there are slots for.
_THROUGH_SHARED = 1.45
#: Hot loops on sm_90 with few rows and one unit in a tile: what they issue for 1000 weights, and a tenth. By kernel and
#: bits of the codes.
_BUDGET = {("linear_a16", 4): 98.0, ("linear_a16", 8): 136.0, ("linear_w4a8", 4): 98.0, ("linear_w8a8", 8): 50.0}


@dataclass(frozen=True)
class Limits:
    """What a compiled kernel may be; None is not judged. Errors, and more memory than there is, never pass."""

    spills: int = 0  # of registers, to local memory and back; in the hot loop there may be none
    tensor: str | None = None  # tensor-core instruction that must be there: "wgmma", "tcgen05", "mma_sync" or "mfma"
    a_in_registers: bool = False  # whether every wgmma must take operand A, the weights, from registers
    programs: int = 1  # that must fit into a multiprocessor at a time; this caps registers and shared memory
    prmt: int | None = None  # byte permutes, in the hot loop
    conversions: int | None = None  # of integers to floats, in the hot loop
    stores: int | None = None  # to shared memory, in the hot loop; copies that pass by the registers are not counted
    waits: int | None = None  # for wgmma, in one turn of the hot loop
    issue: float | None = None  # instructions that the warps issue in the hot loop for 1000 weights

    def failures(self, row: Row) -> list[str]:
        """What a compiled kernel is that it may not be, each with what was got and what is allowed."""
        if "error" in row:
            return [f"does not compile: {row['error']}"]
        loop = row["loop"] or {}
        most = {
            "spills": (row["spills"], self.spills),
            "spills in the loop": (loop.get("local"), 0),
            "bytes of stack": (row["stack"], 0),
            "registers": (row["registers"], register_cap(row["arch"], self.programs, row["warps"])),
            "bytes of shared memory": (row["shared"], shared_cap(row["arch"], self.programs)),
            "PRMT in the loop": (loop.get("prmt"), self.prmt),
            "integer conversions in the loop": (loop.get("conversions"), self.conversions),
            "stores to shared memory in the loop": (loop.get("stores"), self.stores),
            "waits for wgmma in the loop": (loop.get("waits"), self.waits),
            "instructions in the loop for 1000 weights": (loop.get("issue"), self.issue),
        }
        found = [
            f"{got:g} {what}, at most {allowed:g} allowed"
            for what, (got, allowed) in most.items()
            if got is not None and allowed is not None and got > allowed
        ]
        if self.tensor and not row.get(self.tensor):
            found.append(f"no {self.tensor}")
        if self.tensor and not loop:
            found.append("no loop with tensor-core instructions")
        registers = row.get("wgmma_a_in_registers")
        if self.a_in_registers and registers != row.get("wgmma"):
            found.append(f"operand A from registers in {registers} of {row.get('wgmma')} wgmma, all required")
        return found


def register_cap(arch: str, programs: int, warps: int) -> int:
    """Registers a thread may have for so many programs in a multiprocessor."""
    if CARDS[arch].hip:  # each of four SIMDs has 512 for a lane, accumulators among them
        return 512 // -(-programs * warps // 4)
    return min(65536 // (programs * warps * 32) // 8 * 8, 255)  # they come in eights


def shared_cap(arch: str, programs: int) -> int:
    """Bytes of shared memory a program may have for so many programs in a multiprocessor."""
    return CARDS[arch].shared * 1024 // programs - (0 if CARDS[arch].hip else 1024)  # of each, CUDA takes 1 KB


def limits(case: Case, triton: tuple[int, ...]) -> Limits:
    """What a recorded case is allowed with some version of the compiler, such as (3, 7).

    Triton before 3.8 makes worse code for some cards, which our kernels cannot change: for mma.sync it sends converted
    weights through shared memory, 4 bytes of a thread at a time, and for tcgen05 it multiplies 8-bit integers by
    mma.sync.
    """
    allowed = _limits(case)
    if triton >= (3, 8):
        return allowed
    eight_bit = case.kernel != "linear_a16"
    if allowed.tensor == "tcgen05" and eight_bit:
        return replace(allowed, tensor="mma_sync")
    if allowed.tensor != "mma_sync" or case.kernel == "linear_w8a8" or allowed.stores is None:
        return allowed
    threads = 32 * case.options["num_warps"]
    words = case.constants["BLOCK_N"] * 128 * (1 if eight_bit else 2) // (4 * threads)  # of 128 inputs
    return replace(
        allowed,
        stores=allowed.stores + words,
        prmt=128 if eight_bit else allowed.prmt,
        issue=None if allowed.issue is None else allowed.issue * _THROUGH_SHARED,
    )


def _limits(case: Case) -> Limits:
    at, card = case.constants, CARDS[case.arch]
    if "BLOCK_M" not in at or case.signature["x"] == "*fp32":
        return Limits()  # no product, or one of float32, which tensor cores do not do
    unit = at.get("UNIT", 0)
    units = 128 // unit if 0 < unit < 128 else 1  # in one tile of 128 inputs
    sums = at["BLOCK_M"] * at["BLOCK_N"] // (32 * case.options["num_warps"])  # of a thread
    from_shared = case.kernel == "linear_w8a8"  # its weights need no conversion, so nothing is gained by registers
    two_groups = not from_shared and card.shared > 128
    return Limits(
        tensor=card.tensor,
        a_in_registers=card.tensor == "wgmma" and not from_shared,
        # Eight warps, so that four convert weights while four multiply.
        programs=max(1, 8 // case.options["num_warps"]) if two_groups else 1,
        prmt=(16 if card.tensor == "wgmma" else 32) * units,
        conversions=0 if case.kernel == "linear_a16" else sums * units,
        stores=None if card.hip else (8 if at.get("ASYMMETRIC") else 4) * units,  # scales and zeros may take that way
        waits=units if card.tensor == "wgmma" else None,
        issue=None if card.hip else _issue(case, units),
    )


def _issue(case: Case, units: int) -> float:
    """Instructions that can be issued while memory delivers 1000 weights, or the tensor cores multiply them.

    The longer of the two: a loop that issues more would be what limits the kernel.
    """
    at, card = case.constants, CARDS[case.arch]
    bits = 8 if case.kernel == "linear_w8a8" else at.get("BITS", 4)
    memory = 1000 * bits / 8 / card.bytes
    product = 1000 * 2 * at["BLOCK_M"] / (card.flops * (1 if case.kernel == "linear_a16" else 2))
    over = _OVER.get((case.kernel, at.get("UNIT", 0), at["BLOCK_M"]), 1.0)
    slots = _SCHEDULERS * max(memory, product) * card.slack * over
    if case.arch == "sm_90" and at["BLOCK_M"] <= 32 and units == 1:
        return min(slots, _BUDGET[case.kernel, bits])
    return slots
