"""Reads what a compiler made of a kernel: NVIDIA's machine code as cuobjdump prints it (SASS), and AMD's assembly.

The hot loop is the innermost cycle, in the graph of which instruction can follow which, that holds tensor-core
instructions. Looking for a jump backwards is not enough: compilers peel and unroll loops, enter them in the middle, and
put rare blocks, such as those that wait for a barrier, behind the end of the kernel, from where they jump back.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import networkx  # which torch needs

_SASS = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);", re.MULTILINE)
_ADDRESS = re.compile(r"0x([0-9a-f]+)\s*$")
_AMD = re.compile(
    r"^(?:(\.L\w+):|\s+([sv]_\w+|ds_\w+|buffer_\w+|global_\w+|flat_\w+|scratch_\w+)[ \t]*([^;/\n]*))", re.MULTILINE
)
#: wgmma, tcgen05, mma.sync, mfma. The shape is in the name of all but tcgen05's.
WGMMA = re.compile(r"[HIQB]GMMA\.")
TCGEN05 = re.compile(r"UTC\w*MMA")
MMA_SYNC = re.compile(r"[HIQOD]MMA\.")
MFMA = re.compile(r"v_mfma_")
_TENSOR = re.compile("|".join(kind.pattern for kind in (WGMMA, TCGEN05, MMA_SYNC, MFMA)))
_SHAPE = re.compile(r"[._](\d+)x(\d+)x(\d+)")
_SHORT_SHAPES = {"1688": (16, 8, 8), "16816": (16, 8, 16), "16832": (16, 8, 32), "16864": (16, 8, 64)}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction."""

    opcode: str  # with its modifiers, such as "HGMMA.64x16x16.F32.BF16"
    operands: tuple[str, ...]  # as they are printed
    follows: tuple[int, ...]  # positions of those that can run next

    @property
    def tensor(self) -> bool:
        """Whether it multiplies matrices."""
        return _TENSOR.match(self.opcode) is not None

    @property
    def a_in_registers(self) -> bool:
        """Of a wgmma: whether operand A comes from registers. From shared memory, one descriptor stands for A and B."""
        return self.operands[1].startswith("R")

    @property
    def products(self) -> int | None:
        """Multiplications of a tensor-core instruction; None where the opcode does not say its shape."""
        shape = _SHAPE.search(self.opcode)
        if shape:
            m, n, k = (int(size) for size in shape.groups())
        else:
            short = next((part for part in self.opcode.split(".") if part in _SHORT_SHAPES), None)
            if short is None:
                return None
            m, n, k = _SHORT_SHAPES[short]
        return m * n * k


def parse(text: str) -> list[Instruction]:
    """The one kernel in a dump of `cuobjdump -sass`.

    Raises:
        ValueError: if there is not one kernel, or if it jumps where nobody can know.
    """
    if text.count("Function : ") != 1:
        raise ValueError(f"expected one kernel in the dump, found {text.count('Function : ')}")
    lines = [match.groups("") for match in _SASS.finditer(text)]
    place = {int(address, 16): number for number, (address, *_) in enumerate(lines)}
    meets: dict[str, int] = {}  # where the threads that BSSY splits come together again, by barrier
    code = []
    for number, (_, predicate, opcode, operands) in enumerate(lines):
        root, address = opcode.split(".")[0], _ADDRESS.search(operands)
        target = place.get(int(address.group(1), 16)) if address else None
        listed = tuple(operand.strip() for operand in operands.split(","))
        if root == "BSSY" and target is not None:
            meets[listed[0]] = target
        always = predicate in ("", "PT", "UPT") and len(listed) == 1
        follows = _next(root, number, meets.get(listed[0]) if root == "BSYNC" else target, always)
        code.append(Instruction(opcode, listed, tuple(f for f in follows if f < len(lines))))
    return code


def _next(root: str, number: int, target: int | None, always: bool) -> tuple[int, ...]:
    if root in ("BRX", "JMX", "BRXU") or (root in ("BRA", "JMP") and target is None):
        raise ValueError(f"{root} at instruction {number}: a jump to an unknown place")
    if root in ("EXIT", "RET"):
        return () if always else (number + 1,)
    if root in ("BRA", "JMP"):
        return (target,) if always else (number + 1, target)  # pyright: ignore[reportReturnType]
    if root == "BSYNC" and target is not None:
        return (number + 1, target)
    return (number + 1,)


def parse_amd(text: str) -> list[Instruction]:
    """The kernel in AMD's assembly, as Triton keeps it."""
    lines, place = [], {}
    for label, opcode, operands in _AMD.findall(text.partition(".Lfunc_end0")[0]):
        if label:
            place[label] = len(lines)
        else:
            lines.append((opcode, tuple(operand.strip() for operand in operands.split(","))))
    code = []
    for number, (opcode, operands) in enumerate(lines):
        follows = () if opcode in ("s_endpgm", "s_branch") else (number + 1,)
        if opcode == "s_branch" or opcode.startswith("s_cbranch"):
            follows = (*follows, place[operands[0]])
        code.append(Instruction(opcode, operands, tuple(f for f in follows if f < len(lines))))
    return code


def hot_loop(code: list[Instruction]) -> list[Instruction]:
    """The innermost loop with the most tensor-core instructions, in the order of the code; empty if there is none."""
    inside, found = set(range(len(code))), set()
    while True:
        loops = [loop for loop in _cycles(code, inside) if any(code[n].tensor for n in loop)]
        if not loops:
            return [code[n] for n in sorted(found)]
        found = max(loops, key=lambda loop: (sum(code[n].tensor for n in loop), -min(loop)))
        # Without its first instruction a loop is open, and only the loops inside it are left.
        entries = {n for before, one in enumerate(code) if before not in found for n in one.follows if n in found}
        inside = found - {min(entries or found)}


def _cycles(code: list[Instruction], inside: set[int]) -> list[set[int]]:
    """Strongly connected parts of the graph that contain a cycle."""
    graph = networkx.DiGraph((n, after) for n in inside for after in code[n].follows if after in inside)
    return [part for part in networkx.strongly_connected_components(graph) if graph.subgraph(part).size()]


def histogram(code: list[Instruction]) -> dict[str, int]:
    """Instructions by opcode, most frequent first, without modifiers; loads and stores with their width in bits."""
    return dict(Counter(_short(one.opcode) for one in code).most_common())


def _short(opcode: str) -> str:
    root, *modifiers = opcode.split(".")
    if root == "WARPGROUP":  # ARRIVE begins a group of wgmma, DEPBAR waits for it
        return f"{root}.{modifiers[0]}"
    if root not in ("LDS", "STS", "LDG", "STG", "LDL", "STL", "LDGSTS", "LDSM", "STSM"):
        return root
    if root in ("LDSM", "STSM"):  # the last modifier counts 8x8 matrices of 16 bits: 32 bits for a thread
        return f"{root}.{32 * int(modifiers[-1]) if modifiers[-1].isdecimal() else 32}"
    width = next((part for part in modifiers if part in ("64", "128", "U8", "S8", "U16", "S16")), "32")
    return f"{root}.{width.lstrip('US')}"


def count(counts: dict[str, int], *names: str) -> int:
    """How many instructions of a histogram have one of these names, whatever their width."""
    return sum(number for opcode, number in counts.items() if opcode in names or opcode.split(".")[0] in names)
