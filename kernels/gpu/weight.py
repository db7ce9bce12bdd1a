"""The kernel layout of packed weights on the GPU: made when a model is loaded, and turned back without loss.

A prepared weight is one uint8 tensor with three parts, each starting at a multiple of 256 bytes:

    codes   int32 (rows / 64, ceil(in / 128), 64, 4, S): tiles of 64 outputs by 128 inputs; rows is out, rounded up
            to a multiple of 128
    scales  (units, rows) in the dtype of the checkpoint, 0 for the rows that pad the last block
    zeros   int8, like the scales; for asymmetric weights only

Outputs 16 g + r and 16 g + 8 + r, r = 0..7, lie side by side among scales and zeros, at 16 g + 2 r.

Codes are two's complement. Word (q, s) of a row holds, of the 128 inputs of its tile,

    4 bits, S = 4   k = 32 s + 8 h + 2 q + b   at bit 4 (h + 4 b),   h = 0..3, b = 0..1
    8 bits, S = 8   k = 16 s + 8 h + 2 q + b   at bit 8 (h + 2 b),   h = 0..1, b = 0..1

which is how the tensor cores want operand A: lane q of four holds inputs 2q, 2q+1, 2q+8, 2q+9 of every 16 (PTX ISA,
wgmma.m64nNk16 and mma.m16n8k16, fragments of A). So a thread reads its 16 bytes of a row at once, and the halves of a
word become pairs of floats without moving anything between threads.

A `unit` is what one row of scales is for: the group, if it is 32, 64 or a multiple of 128 inputs; otherwise the largest
of 32, 64 and 128 that divides it, its scales repeated; or everything, for scales per channel or tensor. Weights of 2
and 3 bits take 4.

Everything here is plain torch and runs where the weight lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache
from math import gcd

import torch
from torch import Tensor

from llmquant.errors import LlmquantError
from llmquant.kernels.product import PackedWeight
from llmquant.numerics.pack import pack, pack_zeros, unpack
from llmquant.numerics.quantized import QuantizedTensor

TILE_N, TILE_K = 64, 128
PADDED_N = 128  # outputs are padded to a multiple of it
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of scales and activations; the position is the number
_ALIGNED = 256
_CHUNK = 1 << 25  # codes that are brought into order at once: bounds the memory of temporaries


@dataclass(frozen=True)
class Format:
    """How a prepared weight lies in its bytes; everything that the bytes do not say themselves."""

    bits: int  # of the checkpoint's codes
    in_features: int
    groups: int  # scales per output in the checkpoint
    scale_type: int  # index of their dtype in DTYPES
    per_tensor: bool  # one scale for all outputs in the checkpoint
    asymmetric: bool

    @classmethod
    def of(cls, weight: PackedWeight) -> Format:
        """The format of a checkpoint's weight."""
        # One output of one group is the same thing either way; the shape tells which to give back.
        _, scale, zero, bits, cols = weight
        return cls(bits, cols, scale.shape[-1], DTYPES.index(scale.dtype), scale.ndim == 1, zero is not None)

    def numbers(self) -> list[int]:
        """As an op takes it; `Format.read` turns them back."""
        return [int(number) for number in astuple(self)]

    @staticmethod
    def read(numbers: Sequence[int]) -> Format:
        """Undo `numbers`."""
        return _read(tuple(numbers))

    @property
    def word_bits(self) -> int:
        """Bits of a code in a word: 4 or 8."""
        return max(self.bits, 4)

    @cached_property
    def unit(self) -> int:
        """Inputs that share a row of scales; 0 for all."""
        if self.groups == 1:
            return 0
        group = self.in_features // self.groups
        return group if group % TILE_K == 0 else gcd(group, TILE_K)

    @cached_property
    def units(self) -> int:
        """Rows of scales, those included that only pad the last tile."""
        return -(-self.tiles_k * TILE_K // self.unit) if self.unit else 1

    @property
    def times(self) -> int:
        """Rows of scales that a group takes."""
        return self.in_features // self.groups // self.unit if self.unit else 1

    @property
    def tiles_k(self) -> int:
        return -(-self.in_features // TILE_K)

    @property
    def scale_dtype(self) -> torch.dtype:
        return DTYPES[self.scale_type]

    def rows(self, out_features: int) -> int:
        """Outputs, those included that only pad the last block."""
        return -(-out_features // PADDED_N) * PADDED_N

    @lru_cache(maxsize=1024)  # noqa: B019 - formats are few, and asked at each call of a layer
    def offsets(self, out_features: int) -> tuple[int, int, int]:
        """Where scales and zeros begin, and how many bytes there are, for so many outputs."""
        rows = self.rows(out_features)
        scales = _aligned(rows * self.tiles_k * TILE_K * self.word_bits // 8)
        zeros = scales + _aligned(rows * self.units * self.scale_dtype.itemsize)
        return scales, zeros, zeros + (_aligned(rows * self.units) if self.asymmetric else 0)


@lru_cache(maxsize=1024)
def _read(numbers: tuple[int, ...]) -> Format:
    bits, in_features, groups, scale_type, per_tensor, asymmetric = numbers
    return Format(bits, in_features, groups, scale_type, bool(per_tensor), bool(asymmetric))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def why_not(weight: PackedWeight) -> str | None:
    """Why the kernels cannot run a weight, in words for a report; None if they can. Where it lies does not matter."""
    weight.check()
    if weight.scale.dtype not in DTYPES:
        return f"scales of {weight.scale.dtype}"
    if weight.in_features == 0 or weight.out_features == 0:
        return "no inputs" if weight.out_features else "no outputs"
    if weight.scale.shape[-1] > 1 and gcd(weight.group, TILE_K) < 32:
        return f"groups of {weight.group}, not a multiple of 32"
    return weight.why_unclear()


def prepare(weight: PackedWeight) -> Tensor:
    """Bring a weight into the kernel layout, where it lies: (bytes,) uint8 of `Format.of(weight)`.

    Raises:
        LlmquantError: for a weight that `why_not` refuses.
    """
    if reason := why_not(weight):
        raise LlmquantError(f"the weight cannot run on the GPU kernels: {reason}; use the reference")
    packed, scale, _, bits, in_features = weight
    has, out_features = Format.of(weight), weight.out_features
    prepared = torch.zeros(has.offsets(out_features)[2], dtype=torch.uint8, device=packed.device)
    codes, scales, zeros = views(prepared, has, out_features)
    step = _tiles_at_once(has)
    for first in range(0, -(-out_features // TILE_N), step):
        rows = slice(first * TILE_N, (first + step) * TILE_N)
        words = _to_words(unpack(packed[rows].detach(), bits, in_features), has)
        codes[first : first + words.shape[0]] = words
    _spread(scales, scale.detach().reshape(1, 1) if scale.ndim == 1 else scale.detach(), has, out_features)
    if zeros is not None:
        _spread(zeros, weight.zeros(), has, out_features)
    return prepared


def restore(weight: Tensor, has: Format, out_features: int) -> PackedWeight:
    """A prepared weight as the checkpoint stores it, bit for bit."""
    codes, scales, zeros = views(weight, has, out_features)
    step = _tiles_at_once(has)
    parts = [
        pack(_from_words(codes[first : first + step], has)[: out_features - first * TILE_N], has.bits)
        for first in range(0, -(-out_features // TILE_N), step)
    ]
    zero = None if zeros is None else _gather(zeros, has, out_features)
    if zero is not None and not has.per_tensor:
        zero = pack_zeros(zero, has.bits)
    return PackedWeight(torch.cat(parts), _gather(scales, has, out_features), zero, has.bits, has.in_features)


def rows_of(weight: Tensor, has: Format, out_features: int, chosen: Tensor) -> Tensor:
    """The rows `chosen` (count,) int64 of the dense weight: (count, in_features), in the dtype of the scales."""
    codes, scales, zeros = views(weight, has, out_features)
    words = codes[chosen // TILE_N, :, chosen % TILE_N].unsqueeze(2)
    pair = chosen // 16 * 16 + chosen % 8 * 2 + chosen % 16 // 8
    units = slice(None, has.groups * has.times, has.times)
    scale, zero = (None if part is None else part[units, pair].t() for part in (scales, zeros))
    assert scale is not None
    return QuantizedTensor(_from_words(words, has), scale, zero).dequantize()


def views(weight: Tensor, has: Format, out_features: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scales and zeros of a prepared weight, as the module docstring has them; zeros None if symmetric.

    Raises:
        LlmquantError: if the weight has another size.
    """
    scales, zeros, end = has.offsets(out_features)
    if weight.dtype != torch.uint8 or tuple(weight.shape) != (end,):
        raise LlmquantError(
            f"a prepared weight of {out_features} outputs in this format is uint8 [{end}]; got {weight.dtype} "
            f"{list(weight.shape)}; make it with llmquant.kernels.gpu.weight.prepare"
        )
    rows = has.rows(out_features)
    size = rows * has.tiles_k * TILE_K * has.word_bits // 8
    codes = weight[:size].view(torch.int32).view(rows // TILE_N, has.tiles_k, TILE_N, 4, has.word_bits)
    count = rows * has.units
    of_scales = weight[scales : scales + count * has.scale_dtype.itemsize].view(has.scale_dtype).view(has.units, rows)
    of_zeros = weight[zeros : zeros + count].view(torch.int8).view(has.units, rows) if has.asymmetric else None
    return codes, of_scales, of_zeros


def _tiles_at_once(has: Format) -> int:
    return max(1, _CHUNK // (TILE_N * TILE_K * has.tiles_k))


def _to_words(codes: Tensor, has: Format) -> Tensor:
    """Codes (rows, in_features) int8 as words (tiles, tiles_k, 64, 4, S) int32."""
    rows, tiles = codes.shape[0], -(-codes.shape[0] // TILE_N)
    padded = codes.new_zeros(tiles * TILE_N, has.tiles_k * TILE_K)
    padded[:rows, : has.in_features] = codes
    places, per_half = TILE_K // (32 if has.word_bits == 4 else 16), 16 // has.word_bits
    # (tile, row, tile_k, s, h, q, b) to (tile, tile_k, row, q, s, b, h): lowest bits last.
    split = padded.view(tiles, TILE_N, has.tiles_k, places, per_half, 4, 2).permute(0, 2, 1, 5, 3, 6, 4).contiguous()
    words = split.shape[:5]
    if has.word_bits == 4:
        pairs = split.view(torch.uint8).bitwise_and_(15).view(*words, 4, 2)
        split = pairs[..., 0] | (pairs[..., 1] << 4)
    return split.view(*words, 4).view(torch.int32).view(words)


def _from_words(words: Tensor, has: Format) -> Tensor:
    """Undo `_to_words`, for tiles of any height: (tiles * height, in_features) int8."""
    tiles, _, rows, _, places = words.shape
    codes = words.contiguous().view(torch.int8).view(*words.shape, 4)
    if has.word_bits == 4:
        low = ((codes & 15) ^ 8) - 8  # the sign of four bits
        codes = torch.stack((low, codes >> 4), -1)
    split = codes.view(tiles, has.tiles_k, rows, 4, places, 2, 16 // has.word_bits)
    ordered = split.permute(0, 2, 1, 4, 6, 3, 5).reshape(tiles * rows, has.tiles_k * TILE_K)
    return ordered[:, : has.in_features].contiguous()


def _spread(out: Tensor, values: Tensor | None, has: Format, out_features: int) -> None:
    """Write (outputs or 1, groups) into (units, rows)."""
    assert values is not None
    filled = out.new_zeros(has.groups * has.times, out.shape[1])
    filled[:, :out_features] = values.t().repeat_interleave(has.times, 0)
    out[: filled.shape[0]] = filled.view(-1, out.shape[1] // 16, 2, 8).transpose(2, 3).reshape(filled.shape)


def _gather(values: Tensor, has: Format, out_features: int) -> Tensor:
    """Undo `_spread`: (outputs, groups), or (1,) per tensor."""
    if has.per_tensor:
        return values[0, :1].clone()
    chosen = values[: has.groups * has.times : has.times]
    ordered = chosen.reshape(has.groups, -1, 8, 2).transpose(2, 3).reshape(chosen.shape)
    return ordered[:, :out_features].t().contiguous()
