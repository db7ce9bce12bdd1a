"""The kernel layout of packed weights on the CPU: made when a model is loaded, and turned back without loss.

A prepared weight is one tensor of bytes; cpu/src/weight.h describes it. It replaces the tensors of a `PackedWeight`
whose scales are float32, bfloat16 or float16. Weights of 2 and 3 bits take 4 bits in memory, and run as 4-bit weights.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from llmquant.errors import LlmquantError
from llmquant.kernels.cpu import native
from llmquant.kernels.product import PackedWeight
from llmquant.numerics.pack import pack_zeros, packed_words

_HEADER = struct.Struct("=IiiiqqqiI")
_MAGIC = 0x31574C51
_DTYPES = {number: dtype for dtype, number in native.FLOATS.items()}
BLOCKS = (128, 64, 32)  # inputs that share a scale and one quantization of the activations


@dataclass(frozen=True)
class Header:
    """What a prepared weight holds."""

    bits: int  # of the checkpoint's codes
    block: int  # inputs per block
    dtype: torch.dtype  # of the scales
    out_features: int
    in_features: int
    groups: int  # scales per row in the checkpoint
    per_tensor: bool  # the checkpoint has one scale for all rows
    asymmetric: bool


def why_not(weight: PackedWeight) -> str | None:
    """Why the C++ kernels cannot run a weight, in words for a report; None if they can."""
    weight.check()
    if not native.wanted():
        return "the C++ kernels are off" if native.library() is not None else "the C++ kernels are not installed"
    if any(tensor is not None and tensor.device.type != "cpu" for tensor in weight[:3]):
        return f"the weight is on {weight.packed.device.type}"
    if weight.scale.dtype not in native.FLOATS:
        return f"scales of {weight.scale.dtype}"
    if weight.in_features == 0:
        return "no inputs"
    if reason := weight.why_unclear():
        return reason
    return None if _block(weight) else f"groups of {weight.group}, not a multiple of 32"


def _block(weight: PackedWeight) -> int | None:
    if weight.scale.shape[-1] == 1:
        return BLOCKS[0]
    return next((block for block in BLOCKS if weight.group % block == 0), None)


def prepare(weight: PackedWeight) -> Tensor:
    """Bring a weight into the kernel layout: (bytes,) uint8, in huge pages where it is large and the system has them.

    Raises:
        LlmquantError: for a weight that `why_not` refuses.
    """
    if reason := why_not(weight):
        raise LlmquantError(f"the weight cannot run on the C++ kernels: {reason}; use the reference")
    rows, cols, bits, zeros = weight.out_features, weight.in_features, weight.bits, weight.zeros()
    packed, scale = weight.packed.detach().contiguous(), weight.scale.detach().contiguous()
    zeros = None if zeros is None else zeros.contiguous()
    block, kind = _block(weight), native.FLOATS[scale.dtype]
    library = native.require()
    prepared = native.huge_pages(library.llmquant_weight_bytes(rows, cols, bits, block, kind, zeros is not None))
    status = library.llmquant_pack_weight(
        prepared.data_ptr(),
        packed.data_ptr(),
        scale.data_ptr(),
        None if zeros is None else zeros.data_ptr(),
        rows,
        cols,
        scale.shape[-1],
        bits,
        block,
        kind,
        # One row of one group is the same thing either way; the shape tells which to give back.
        scale.ndim == 1,
    )
    native.check(status, native.isa())
    return prepared


def header(weight: Tensor) -> Header:
    """What a prepared weight holds; an error if it is none."""
    if weight.dtype != torch.uint8 or weight.ndim != 1 or weight.numel() < 64 or weight.device.type != "cpu":
        raise LlmquantError(f"a prepared weight is uint8 [bytes] on the CPU; got {weight.dtype} {list(weight.shape)}")
    magic, bits, block, kind, rows, cols, groups, per_tensor, zeros = _HEADER.unpack(
        bytes(weight[: _HEADER.size].tolist())
    )
    wanted = (
        native.require().llmquant_weight_bytes(rows, cols, bits, block, kind, zeros)
        if magic == _MAGIC and block > 0
        else 0
    )
    if not 0 < wanted <= weight.numel() or block not in BLOCKS or kind not in _DTYPES:
        raise LlmquantError("the bytes are no prepared weight; make it with cpu_weight.prepare")
    return Header(bits, block, _DTYPES[kind], rows, cols, groups, bool(per_tensor), bool(zeros))


def restore(weight: Tensor) -> PackedWeight:
    """A prepared weight as the checkpoint stores it, bit for bit."""
    has = header(weight)
    packed = torch.empty(has.out_features, packed_words(has.in_features, has.bits), dtype=torch.int32, device="cpu")
    shape = (1,) if has.per_tensor else (has.out_features, has.groups)
    scale = torch.empty(shape, dtype=has.dtype, device="cpu")
    zeros = torch.empty(shape, dtype=torch.int8, device="cpu") if has.asymmetric else None
    status = native.require().llmquant_unpack_weight(
        weight.data_ptr(), packed.data_ptr(), scale.data_ptr(), None if zeros is None else zeros.data_ptr()
    )
    native.check(status, native.isa())
    zero = zeros if zeros is None or has.per_tensor else pack_zeros(zeros, has.bits)
    return PackedWeight(packed, scale, zero, has.bits, has.in_features)


def select_rows(weight: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows (count,) int64 of a prepared weight in the checkpoint's layout, with zeros not packed: packed, scale, zeros.

    Raises:
        IndexError: if a row does not exist.
    """
    has = header(weight)
    rows = rows.contiguous()
    count = rows.numel()
    if count and not (int(rows.min()) >= 0 and int(rows.max()) < has.out_features):
        raise IndexError(f"rows of {int(rows.min())} to {int(rows.max())} are asked for; there are {has.out_features}")
    packed = torch.empty(count, packed_words(has.in_features, has.bits), dtype=torch.int32, device="cpu")
    scale = torch.empty(count, has.groups, dtype=has.dtype, device="cpu")
    zeros = torch.empty(count, has.groups, dtype=torch.int8, device="cpu") if has.asymmetric else None
    status = native.require().llmquant_unpack_selected(
        weight.data_ptr(),
        rows.data_ptr(),
        count,
        packed.data_ptr(),
        scale.data_ptr(),
        None if zeros is None else zeros.data_ptr(),
    )
    native.check(status, native.isa())
    return packed, scale, zeros
