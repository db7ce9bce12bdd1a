"""The inline PTX of the kernels in numpy: the instructions they use, on all elements at once.

Triton's interpreter runs everything but inline assembly. `run` does that part, after the PTX ISA and LLVM's rules for
constraints; `Builder.inline_asm` puts it into the interpreter. What is not known here is refused, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
_SIZES = {"r": 32, "h": 16}
_OPERAND = re.compile(r"\{[^}]*\}|[^,\s]+")


class AsmError(ValueError):
    """Assembly that is wrong, or that this emulator does not know."""


class _Registers:
    """Values by name: (bits, array). Operands `$0`, `$1`, .. come with their constraints."""

    def __init__(self, constraints: str, inputs: list[Words]) -> None:
        listed = [one.strip() for one in constraints.split(",")]
        self.outputs = [one.removeprefix("=") for one in listed if one.startswith("=")]
        kinds = listed[len(self.outputs) :]
        if len(kinds) != len(inputs):
            raise AsmError(f"{len(kinds)} constraints for {len(inputs)} inputs")
        self.sizes = {f"${number}": _SIZES[kind.strip("=&")] for number, kind in enumerate(listed)}
        self.values = {f"${len(self.outputs) + number}": value for number, value in enumerate(inputs)}
        self.inputs = set(self.values)
        self.written = False  # an output that is not marked "&": it may be in the register of an input

    def read(self, name: str) -> Words:
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", name):
            return np.uint32(int(name, 0) & 0xFFFFFFFF)  # pyright: ignore[reportReturnType]
        if name in self.inputs and self.written:
            raise AsmError(f"{name} is read after an output was written, which may be the same register: mark it '=&'")
        if name not in self.values:
            raise AsmError(f"{name} is read before it is written")
        return self.values[name]

    def write(self, name: str, value: Words, bits: int = 32) -> None:
        if name not in self.sizes or name in self.inputs:
            raise AsmError(f"{name} cannot be written")
        if self.sizes[name] != bits:
            raise AsmError(f"{name} has {self.sizes[name]} bits, and is given {bits}")
        self.values[name] = value
        if name.startswith("$") and "&" not in self.outputs[int(name[1:])]:
            self.written = True


def run(asm: str, constraints: str, inputs: list[Words]) -> list[Words]:
    """Run inline assembly on arrays.

    Args:
        asm: statements, as Triton takes them.
        constraints: LLVM's, outputs first; of 32 ("r") or 16 bits ("h").
        inputs: one array for each input, all of one shape.

    Returns:
        one array for each output; 16-bit ones in the lower half.

    Raises:
        AsmError: if it is wrong.
    """
    registers = _Registers(constraints, inputs)
    for statement in filter(None, (one.strip() for one in asm.strip().strip("{}").split(";"))):
        words = statement.replace("\n", " ")
        opcode, _, rest = words.partition(" ")
        operands = _OPERAND.findall(rest)
        if opcode == ".reg":
            if operands[0] != ".b32":
                raise AsmError(f"a register of {operands[0]}")
            registers.sizes |= dict.fromkeys(operands[1:], 32)
        elif opcode == "mov.b32":
            _move(registers, *operands)
        elif opcode in _OPERATIONS:
            target, *sources = operands
            registers.write(target, _OPERATIONS[opcode](*(registers.read(source) for source in sources)))
        else:
            raise AsmError(f"no rule for {opcode}")
    return [np.broadcast_to(registers.values[f"${n}"], inputs[0].shape) for n in range(len(registers.outputs))]


def _move(registers: _Registers, target: str, source: str) -> None:
    if target.startswith("{"):  # the first is the lower half
        value = registers.read(source)
        low, high = _OPERAND.findall(target.strip("{}"))
        registers.write(low, value & np.uint32(0xFFFF), 16)
        registers.write(high, value >> np.uint32(16), 16)
    else:
        registers.write(target, registers.read(source))


def lop3(a: Words, b: Words, c: Words, table: Any) -> Words:
    """Any function of three bits: bit 4 a + 2 b + c of the table."""
    result = np.zeros_like(a)
    for place in range(8):
        if int(table) >> place & 1:
            result = result | (a if place & 4 else ~a) & (b if place & 2 else ~b) & (c if place & 1 else ~c)
    return result


def _shift(shifted: Callable[[Any, Any], Any]) -> Callable[[Words, Any], Words]:
    def apply(value: Words, by: Any) -> Words:
        return shifted(value, by) if by < 32 else np.zeros_like(value)

    return apply


def _halves(word: Words, dtype: str) -> list[NDArray[np.float64]]:
    """Both halves of a word as numbers."""
    parts = [(word & np.uint32(0xFFFF)).astype(np.uint16), (word >> np.uint32(16)).astype(np.uint16)]
    if dtype == "f16x2":
        return [part.view(np.float16).astype(np.float64) for part in parts]
    return [(part.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64) for part in parts]


def rounded(value: NDArray[np.float64], dtype: str) -> Words:
    """The bits of the nearest f16 or bf16, ties to even."""
    if dtype == "f16x2":
        return value.astype(np.float16).view(np.uint16).astype(np.uint32)
    exponent = np.maximum(np.frexp(value)[1], -125)  # below, the steps stay the same
    nearest = np.ldexp(np.rint(np.ldexp(value, 8 - exponent)), exponent - 8)
    return nearest.astype(np.float32).view(np.uint32) >> np.uint32(16)


def fma(a: Words, b: Words, c: Words, dtype: str) -> Words:
    """a * b + c of both halves, rounded once. Refused where float64 does not hold the sum."""
    results = []
    with np.errstate(all="ignore"):  # nor does a GPU complain of NaN
        for x, y, z in zip(*(_halves(np.atleast_1d(word), dtype) for word in (a, b, c)), strict=True):
            product = x * y  # of 11 bits and 11 bits: exact
            total = product + z
            part = total - product
            if np.any((product - (total - part)) + (z - part)):
                raise AsmError("a sum that float64 does not hold")
            results.append(rounded(total, dtype))
    return results[0] | results[1] << np.uint32(16)


_OPERATIONS: dict[str, Callable[..., Words]] = {
    "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or,
    "xor.b32": np.bitwise_xor,
    "shl.b32": _shift(np.left_shift),
    "shr.u32": _shift(np.right_shift),
    "lop3.b32": lop3,
    "fma.rn.f16x2": lambda a, b, c: fma(a, b, c, "f16x2"),
    "fma.rn.bf16x2": lambda a, b, c: fma(a, b, c, "bf16x2"),
}


def inline_asm(_: Any, asm: str, constraints: str, handles: list[Any], types: list[Any], pure: bool, pack: int) -> Any:
    """`create_inline_asm` of the interpreter's builder; `pack` elements fill a register."""
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype

    shape = handles[0].data.shape
    packed = [np.ascontiguousarray(handle.data).reshape(-1) for handle in handles]
    outputs = run(asm, constraints, [value.view(np.uint32) for value in packed])
    results = []
    for output, of in zip(outputs, types, strict=True):
        dtype = _get_np_dtype(of)
        if dtype.itemsize * pack not in (2, 4):
            raise AsmError(f"{pack} elements of {dtype} do not fill a register")
        bits = np.ascontiguousarray(output).astype(np.uint16 if dtype.itemsize * pack == 2 else np.uint32)
        results.append(TensorHandle(bits.view(dtype).reshape(shape), of.scalar))
    return SimpleNamespace(get_result=lambda number: results[number])
