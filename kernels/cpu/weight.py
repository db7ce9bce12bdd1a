"""The kernel layout of packed weights on the CPU: made when a model is loaded, and turned back without loss.

A prepared weight is one tensor of bytes; cpu/src/weight.h describes it. It replaces the checkpoint's tensors, which are

    packed  (out_features, ceil(in_features * bits / 32)) int32
    scale   (out_features, groups), or (1,) per tensor; float32, bfloat16 or float16
    zero    (ceil(out_features * bits / 32), groups) int32, or (1,) int8 per tensor; None for symmetric weights

Weights of 2 and 3 bits take 4 bits in memory, and run as 4-bit weights.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from llmquant.errors import LlmquantError
from llmquant.kernels.cpu import native
from llmquant.kernels.ops.dequantize import check_weight, plain_zeros
from llmquant.numerics.pack import pack_zeros, packed_words

_HEADER = struct.Struct("=IiiiqqqiI")
_MAGIC = 0x31574C51
_DTYPES = {number: dtype for dtype, number in native.FLOATS.items()}
BLOCKS = (128, 64, 32)  # inputs that share a scale and one quantization of the activations


@dataclass(frozen=True)
class Header:
    """What a prepared weight holds.

    Attributes:
        bits: of the checkpoint's codes.
        block: inputs per block.
        dtype: of the scales.
        out_features: rows.
        in_features: columns.
        groups: scales per row in the checkpoint.
        per_tensor: the checkpoint has one scale for all rows.
        asymmetric: there are zeros.
    """

    bits: int
    block: int
    dtype: torch.dtype
    out_features: int
    in_features: int
    groups: int
    per_tensor: bool
    asymmetric: bool


def why_not(packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, in_features: int) -> str | None:
    """Why the C++ kernels cannot run a weight, in words for a report; None if they can.

    Args:
        packed: as in the module docstring, like `scale` and `zero`.
        scale: its scales.
        zero: its zeros.
        bits: 2, 3, 4 or 8.
        in_features: columns.
    """
    check_weight(packed, scale, zero, bits, in_features)
    if not native.wanted():
        return "the C++ kernels are off" if native.library() is not None else "the C++ kernels are not installed"
    if any(tensor is not None and tensor.device.type != "cpu" for tensor in (packed, scale, zero)):
        return f"the weight is on {packed.device.type}"
    if scale.dtype not in native.FLOATS:
        return f"scales of {scale.dtype}"
    if in_features == 0:
        return "no inputs"
    # One scale for all outputs is told from one scale per output by its shape.
    if scale.numel() == 1 and packed.shape[0] > 1 and (scale.ndim != 1 or (zero is not None and zero.ndim != 1)):
        return f"one scale of shape {list(scale.shape)}, not [1]"
    if _block(in_features, scale.shape[-1]) is None:
        return f"groups of {in_features // scale.shape[-1]}, not a multiple of 32"
    return None


def _block(in_features: int, groups: int) -> int | None:
    if groups == 1:
        return BLOCKS[0]
    return next((block for block in BLOCKS if in_features // groups % block == 0), None)


def prepare(packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, in_features: int) -> Tensor:
    """Bring a weight into the kernel layout.

    Args:
        packed: as in the module docstring, like `scale` and `zero`; not changed.
        scale: its scales.
        zero: its zeros.
        bits: 2, 3, 4 or 8.
        in_features: columns.

    Returns:
        (bytes,) uint8; in huge pages where it is large and the system has them.

    Raises:
        LlmquantError: for a weight that `why_not` refuses.
        OutOfMemoryError: if there is no memory for it.
    """
    if reason := why_not(packed, scale, zero, bits, in_features):
        raise LlmquantError(f"the weight cannot run on the C++ kernels: {reason}; use the reference")
    rows, groups = packed.shape[0], scale.shape[-1]
    zeros = plain_zeros(zero, bits, rows)
    packed, scale = packed.detach().contiguous(), scale.detach().contiguous()
    zeros = None if zeros is None else zeros.contiguous()
    block, kind = _block(in_features, groups), native.FLOATS[scale.dtype]
    library = native.require()
    weight = native.huge_pages(library.llmquant_weight_bytes(rows, in_features, bits, block, kind, zeros is not None))
    status = library.llmquant_pack_weight(
        weight.data_ptr(),
        packed.data_ptr(),
        scale.data_ptr(),
        None if zeros is None else zeros.data_ptr(),
        rows,
        in_features,
        groups,
        bits,
        block,
        kind,
        # One row of one group is the same thing either way; the shape tells which to give back.
        scale.ndim == 1,
    )
    native.check(status, native.isa())
    return weight


def header(weight: Tensor) -> Header:
    """What a prepared weight holds.

    Raises:
        LlmquantError: if it is none.
    """
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


def restore(weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The checkpoint's tensors of a prepared weight, bit for bit: packed, scale, zero.

    Raises:
        LlmquantError: if it is no prepared weight.
    """
    has = header(weight)
    packed = torch.empty(has.out_features, packed_words(has.in_features, has.bits), dtype=torch.int32, device="cpu")
    shape = (1,) if has.per_tensor else (has.out_features, has.groups)
    scale = torch.empty(shape, dtype=has.dtype, device="cpu")
    zeros = torch.empty(shape, dtype=torch.int8, device="cpu") if has.asymmetric else None
    status = native.require().llmquant_unpack_weight(
        weight.data_ptr(), packed.data_ptr(), scale.data_ptr(), None if zeros is None else zeros.data_ptr()
    )
    native.check(status, native.isa())
    return packed, scale, zeros if zeros is None or has.per_tensor else pack_zeros(zeros, has.bits)


def select_rows(weight: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Some rows of a prepared weight in the checkpoint's layout, with zeros not packed: packed, scale, zeros int8.

    Args:
        weight: prepared.
        rows: (count,) int64.

    Raises:
        IndexError: if a row does not exist.
        LlmquantError: if it is no prepared weight.
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
