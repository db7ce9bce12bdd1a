"""`ops.round_block` in C++: all inputs of a block in one call, threads over the outputs."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from llmquant.kernels.cpu import native
from llmquant.kernels.ops.round_block import Columns


class _Job(ctypes.Structure):
    """RoundJob in cpu/src/rounding.h."""

    _fields_ = (
        ("targets", ctypes.c_void_p),
        ("errors", ctypes.c_void_p),
        ("inner", ctypes.c_void_p),
        ("groups", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("code_min", ctypes.c_int32),
        ("code_max", ctypes.c_int32),
        ("scale_type", ctypes.c_int32),
        ("isa", ctypes.c_int32),
    )


def round_block(
    targets: Tensor,
    errors: Tensor,
    inner: Tensor,
    groups: Tensor,
    columns: Columns,
    codes: Tensor,
    *,
    instructions: str | None = None,
) -> None:
    """See `ops.round_block.round_block`, whose bits it gives. `instructions` are one of `native.supported()`.

    Raises:
        ValueError: if a tensor is not contiguous, not on the CPU, or of another shape or dtype than is said there.
    """
    _require(targets, errors, inner, groups, columns, codes)
    instructions = instructions or native.isa()
    job = _Job()
    job.targets, job.errors, job.inner = targets.data_ptr(), errors.data_ptr(), inner.data_ptr()
    job.groups, job.scales, job.codes = groups.data_ptr(), columns.scales.data_ptr(), codes.data_ptr()
    job.zeros = None if columns.zeros is None else columns.zeros.data_ptr()
    job.inputs, job.outputs = targets.shape
    job.code_min, job.code_max = columns.code_min, columns.code_max
    job.scale_type, job.isa = native.FLOATS[columns.dtype], native.ISAS.index(instructions)
    native.check(native.require().llmquant_round_block(ctypes.byref(job)), instructions)


def _require(targets: Tensor, errors: Tensor, inner: Tensor, groups: Tensor, columns: Columns, codes: Tensor) -> None:
    """Refuse what the library would read or write out of bounds."""
    inputs, outputs = targets.shape
    grid = (columns.scales.shape[0], outputs)
    wanted = [
        (targets, torch.float32, (inputs, outputs)),
        (errors, torch.float32, (inputs, outputs)),
        (inner, torch.float32, (inputs, inputs)),
        (groups, torch.int64, (inputs,)),
        (columns.scales, torch.float32, grid),
        (codes, torch.int8, (inputs, outputs)),
    ]
    if columns.zeros is not None:
        wanted.append((columns.zeros, torch.float32, grid))
    for tensor, dtype, shape in wanted:
        if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_cpu or not tensor.is_contiguous():
            raise ValueError(
                f"expected contiguous {dtype} {list(shape)} on the CPU, got {tensor.dtype} {list(tensor.shape)} with "
                f"strides {list(tensor.stride())} on {tensor.device}"
            )
    low, high = torch.aminmax(groups)
    if low < 0 or high >= grid[0]:
        raise ValueError(f"groups are in 0 to {grid[0] - 1}, not {low.item()} to {high.item()}")
