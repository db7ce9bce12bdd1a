"""Words of codes to operand A of the tensor cores: `codes - zeros`, exact in the dtype of the activations.

A prepared weight (weight.py) is ordered so that both 16-bit halves of a word, masked, are the low bits of two floats
that go to the same thread. On NVIDIA GPUs that takes inline PTX: with the exponent of 128 (bf16) or 1024 (fp16) set by
the same lop3 that masks, a half reads 128 + code, and one fma takes 128 and the zero point away again. No conversion
instruction, which would run at a quarter of the rate, and no byte permutes. The trick is that of Kim et al. 2022 ("Who
Says Elephants Can't Run", section 3.3), the difference being that the zero point goes away here, as an integer, and
not in the scale: all values involved are integers that the dtype holds, so nothing is rounded.

Everywhere else (the interpreter, AMD, fp32) plain shifts do the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Nibble h of both halves of a word is (w >> 4 h) & 0x000f000f. Operands: 8 outputs, the word, and -(136 + zero) twice.
# 0x6a is (a & b) ^ c: the xor turns two's complement into an offset of 8 while it sets the exponent.
_BF16_4 = tl.constexpr("""{
.reg .b32 a, b, c, d, one;
mov.b32 one, 0x3f803f80;
shr.u32 b, $8, 4;
shr.u32 c, $8, 8;
shr.u32 d, $8, 12;
lop3.b32 a, $8, 0x000f000f, 0x43084308, 0x6a;
lop3.b32 b, b, 0x000f000f, 0x43084308, 0x6a;
lop3.b32 c, c, 0x000f000f, 0x43084308, 0x6a;
lop3.b32 d, d, 0x000f000f, 0x43084308, 0x6a;
fma.rn.bf16x2 a, a, one, $9;
fma.rn.bf16x2 b, b, one, $9;
fma.rn.bf16x2 c, c, one, $9;
fma.rn.bf16x2 d, d, one, $9;
mov.b32 {$0, $1}, a;
mov.b32 {$2, $3}, b;
mov.b32 {$4, $5}, c;
mov.b32 {$6, $7}, d;
}""")
# fp16 has room for a nibble that stays four bits higher: 1024 + 16 (8 + code), times 1/16. $10 is -(72 + zero) twice.
_FP16_4 = tl.constexpr("""{
.reg .b32 a, b, c, d, one, part;
mov.b32 one, 0x3c003c00;
mov.b32 part, 0x2c002c00;
shr.u32 d, $8, 8;
lop3.b32 a, $8, 0x000f000f, 0x64086408, 0x6a;
lop3.b32 b, $8, 0x00f000f0, 0x64806480, 0x6a;
lop3.b32 c, d, 0x000f000f, 0x64086408, 0x6a;
lop3.b32 d, d, 0x00f000f0, 0x64806480, 0x6a;
fma.rn.f16x2 a, a, one, $9;
fma.rn.f16x2 b, b, part, $10;
fma.rn.f16x2 c, c, one, $9;
fma.rn.f16x2 d, d, part, $10;
mov.b32 {$0, $1}, a;
mov.b32 {$2, $3}, b;
mov.b32 {$4, $5}, c;
mov.b32 {$6, $7}, d;
}""")
# Seven bits fit behind the exponent of 128. The eighth, the sign, chooses what to take away: 128 or 256. 0xea is
# (a & b) | c. $5 is -zero twice.
_BF16_8 = tl.constexpr("""{
.reg .b32 a, b, c, d, minus;
mov.b32 minus, 0xbf80bf80;
shr.u32 d, $4, 8;
lop3.b32 a, $4, 0x007f007f, 0x43004300, 0xea;
lop3.b32 b, $4, 0x00800080, 0x43004300, 0xea;
fma.rn.bf16x2 a, b, minus, a;
lop3.b32 c, d, 0x007f007f, 0x43004300, 0xea;
lop3.b32 d, d, 0x00800080, 0x43004300, 0xea;
fma.rn.bf16x2 c, d, minus, c;
mov.b32 {$0, $1}, a;
mov.b32 {$2, $3}, c;
}""")
_TAKE_ZEROS = """.reg .b32 one;
mov.b32 one, 0x3f803f80;
fma.rn.bf16x2 a, a, one, $5;
fma.rn.bf16x2 c, c, one, $5;
mov.b32 {$0"""
_BF16_8_ZEROS = tl.constexpr(_BF16_8.value.replace("mov.b32 {$0", _TAKE_ZEROS))
# $5 is -(1152 + zero) twice.
_FP16_8 = tl.constexpr("""{
.reg .b32 a, c, d, one;
mov.b32 one, 0x3c003c00;
shr.u32 d, $4, 8;
lop3.b32 a, $4, 0x00ff00ff, 0x64806480, 0x6a;
lop3.b32 c, d, 0x00ff00ff, 0x64806480, 0x6a;
fma.rn.f16x2 a, a, one, $5;
fma.rn.f16x2 c, c, one, $5;
mov.b32 {$0, $1}, a;
mov.b32 {$2, $3}, c;
}""")


@triton.jit
def operand(words, zeros, BITS: tl.constexpr, ASYMMETRIC: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """`codes - zeros` (rows, 128 / BITS * S) of DTYPE, inputs in their order.

    `words` are (rows, 4, S) int32, S of a tile or a half or a quarter of it; `zeros` (rows,) int32, or anything if not
    ASYMMETRIC.
    """
    rows: tl.constexpr = words.shape[0]
    places: tl.constexpr = words.shape[2]
    if ASM:
        low, high = _offsets(zeros, rows, BITS, ASYMMETRIC, DTYPE)
    if ASM and BITS == 4 and DTYPE == tl.bfloat16:
        parts = tl.inline_asm_elementwise(
            _BF16_4, "=h,=h,=h,=h,=h,=h,=h,=h,r,r", [words, low], dtype=(tl.bfloat16,) * 8, is_pure=True, pack=1
        )
    elif ASM and BITS == 4:
        parts = tl.inline_asm_elementwise(
            _FP16_4, "=h,=h,=h,=h,=h,=h,=h,=h,r,r,r", [words, low, high], dtype=(tl.float16,) * 8, is_pure=True, pack=1
        )
    elif ASM and DTYPE == tl.bfloat16 and ASYMMETRIC:
        parts = tl.inline_asm_elementwise(
            _BF16_8_ZEROS, "=h,=h,=h,=h,r,r", [words, low], dtype=(tl.bfloat16,) * 4, is_pure=True, pack=1
        )
    elif ASM and DTYPE == tl.bfloat16:
        parts = tl.inline_asm_elementwise(
            _BF16_8, "=h,=h,=h,=h,r", [words], dtype=(tl.bfloat16,) * 4, is_pure=True, pack=1
        )
    elif ASM:
        parts = tl.inline_asm_elementwise(
            _FP16_8, "=h,=h,=h,=h,r,r", [words, low], dtype=(tl.float16,) * 4, is_pure=True, pack=1
        )
    else:
        parts = _shifted(words, zeros, BITS, ASYMMETRIC, DTYPE)
    if BITS == 4:  # parts[2 h + b] is (rows, q, s); joins append dimensions, the last one is the fastest
        even = tl.join(tl.join(parts[0], parts[1]), tl.join(parts[4], parts[5]))
        odd = tl.join(tl.join(parts[2], parts[3]), tl.join(parts[6], parts[7]))
        split = tl.permute(tl.join(even, odd), (0, 2, 4, 5, 1, 3))  # (row, q, s, b, h / 2, h % 2) to k order
    else:
        split = tl.permute(tl.join(tl.join(parts[0], parts[1]), tl.join(parts[2], parts[3])), (0, 2, 4, 1, 3))
    return tl.reshape(split, (rows, 128 // BITS * places))


@triton.jit
def _offsets(zeros, rows: tl.constexpr, BITS: tl.constexpr, ASYMMETRIC: tl.constexpr, DTYPE: tl.constexpr):
    """What the fma of the PTX adds, twice in a word; two variants where fp16 has two."""
    if not ASYMMETRIC:
        zeros = tl.zeros((rows,), tl.int32)
    zeros = zeros[:, None, None]  # not a reshape, behind which Triton 3.9 cannot choose the layout
    if DTYPE == tl.bfloat16 and BITS == 8:
        # Of the range of int8, and even 128, bf16 holds every integer.
        low = (-zeros).to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int32)
        high = low
    elif DTYPE == tl.bfloat16:
        low = 0xC308 + zeros
        high = low
    else:
        low = (0xE408 if BITS == 4 else 0xE480) + zeros
        high = 0xD480 + zeros * 16
    return low | (low << 16), high | (high << 16)


@triton.jit
def _shifted(words, zeros, BITS: tl.constexpr, ASYMMETRIC: tl.constexpr, DTYPE: tl.constexpr):
    """The same by shifts: a tuple of (rows, 4, S), in the order of the PTX's outputs."""
    rows: tl.constexpr = words.shape[0]
    if not ASYMMETRIC:
        zeros = tl.zeros((rows,), tl.int32)
    zeros = zeros[:, None, None]
    if BITS == 4:
        return (
            (((words << 28) >> 28) - zeros).to(DTYPE),
            (((words << 12) >> 28) - zeros).to(DTYPE),
            (((words << 24) >> 28) - zeros).to(DTYPE),
            (((words << 8) >> 28) - zeros).to(DTYPE),
            (((words << 20) >> 28) - zeros).to(DTYPE),
            (((words << 4) >> 28) - zeros).to(DTYPE),
            (((words << 16) >> 28) - zeros).to(DTYPE),
            ((words >> 28) - zeros).to(DTYPE),
        )
    else:
        return (
            (((words << 24) >> 24) - zeros).to(DTYPE),
            (((words << 8) >> 24) - zeros).to(DTYPE),
            (((words << 16) >> 24) - zeros).to(DTYPE),
            ((words >> 24) - zeros).to(DTYPE),
        )
