"""`x @ weight.T + bias` with a prepared weight on the CPU: the op `llmquant::cpu_linear`, and its relatives.

The weight is a tensor of bytes made by cpu/weight.py. What is computed is what linear_int.py defines, with two
differences: the weight `scale * (code - zero)` is not rounded to the dtype of the scales, and `x` is quantized in
blocks of 128, 64 or 32 inputs (the largest that divides the weight's group), each with its own scale, in one of two
accuracies:

    exact  16 bits: relative error at most 1e-4, far below that of rounding to bfloat16
    fast   8 bits: relative error some 7e-3 on Gaussian inputs with blocks of 128, more with outliers

Everything else is exact integer arithmetic and one float32 multiply-add per block, so results depend neither on the
instruction set, nor on the number of threads, nor on the other rows of `x`. A block with NaN or infinity gives NaN.

The gradient reaches `x` and `bias`, through the dequantized weight; the fused op is for inference only.

What the library unpacks serves the definitions of kernels/ops on the CPU too: it is registered over them here.

`llmquant::cpu_linear_w8a8` is for weights whose checkpoint asks for 8-bit activations: they have one scale per row, or
one for all, and mean what linear_w8a8.py says.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, partial
from math import nan
from typing import Any

import torch
from torch import Tensor

from llmquant.kernels.cpu import native
from llmquant.kernels.cpu.weight import header, restore, select_rows
from llmquant.kernels.ops import dequantize as definition
from llmquant.kernels.ops.embedding_int import embedding_by
from llmquant.kernels.ops.frozen import define, register_gradient
from llmquant.kernels.ops.linear_int import linear_by
from llmquant.kernels.product import ASKED, Product
from llmquant.spec import BITS

_PARTS = 4  # most_parts in cpu/src/linear.h


class _Call(ctypes.Structure):
    """LinearCall in cpu/src/api.cpp."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("norm", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("weights", ctypes.c_void_p * _PARTS),
        ("biases", ctypes.c_void_p * _PARTS),
        ("outs", ctypes.c_void_p * _PARTS),
        ("out_features", ctypes.c_int64 * _PARTS),
        ("cols", ctypes.c_int64),
        ("count", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("planes", ctypes.c_int32),
        ("per_token", ctypes.c_int32),
        ("silu", ctypes.c_int32),
        ("isa", ctypes.c_int32),
        ("norm_eps", ctypes.c_float),
        ("input_scale", ctypes.c_float),
    )


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int, exact: bool, *, instructions: str | None = None
) -> Tensor:
    """What the op `cpu_linear` runs; calling it directly saves the dispatcher's ten microseconds, and has no gradient.

    Args:
        x: (..., in_features) float32, bfloat16 or float16, on the CPU.
        weight: prepared.
        bias: (out_features,) in the dtype of `x`, as the result is.
        exact: 16-bit activations; else 8-bit.
        instructions: one of `native.supported()`; None for `native.isa()`.

    Raises:
        LlmquantError: if the weight is no prepared one of (out_features, in_features).
        RuntimeError: if dtypes or shapes do not fit.
    """
    return _linear(x, weight, bias, out_features, instructions, 2 if exact else 1)


def linear_w8a8(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int,
    input_scale: Tensor | None = None,
    *,
    instructions: str | None = None,
) -> Tensor:
    """What the op `cpu_linear_w8a8` runs: `linear` for an 8-bit weight as linear_w8a8.py defines it.

    `input_scale` is (1,), of all inputs; None if each row has its own.
    """
    # To the C function 0 means none.
    scale = 0.0 if input_scale is None else float(input_scale) or nan
    return _linear(x, weight, bias, out_features, instructions, 1, scale)


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int,
    instructions: str | None,
    planes: int,
    input_scale: float | None = None,
) -> Tensor:
    kind = native.FLOATS.get(x.dtype)
    if kind is None or not x.is_cpu or not x.ndim or bias is not None:
        _check(x, bias, out_features)
    x = x.contiguous()
    shape = x.shape
    out = x.new_empty(*shape[:-1], out_features)  # a tuple would take time
    cols = shape[-1]
    run, isa = _entry(instructions)
    status = run(
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        x.numel() // cols if cols else out.numel() // max(1, out_features),
        cols,
        out_features,
        kind,
        planes,
        input_scale is not None,
        isa,
        input_scale or 0.0,
    )
    if status:
        native.check(status, native.ISAS[isa])
    return out


@cache
def _entry(instructions: str | None) -> tuple[Any, int]:
    """The C function and the number of the instruction set; found once, because each call has only microseconds."""
    return native.require().llmquant_linear_one, native.ISAS.index(instructions or native.isa())


def linear_fused(x: Tensor, product: Product) -> list[Tensor]:
    """What the op `cpu_linear_fused` runs: several weights on one input, with what comes before and after them.

    There are up to four weights with groups of one block size; `x` and results are as those of `linear`.

    Raises:
        LlmquantError: if the weights are no prepared ones, or cannot share their input.
        RuntimeError: if dtypes or shapes do not fit.
    """
    x = x.contiguous()
    if x.dtype not in native.FLOATS or not x.is_cpu or not x.ndim:
        _check(x, None, 0)  # says what is wrong
    product.check(x, _PARTS)
    weights, biases, out_features, exact, norm, norm_eps, residual, silu, _ = product
    *rows, cols = x.shape
    outs = [x.new_empty(*rows, width) for width in product.widths]  # a tuple, or a dtype, would take time
    count = len(weights)
    call = _Call()
    call.x, call.rows, call.cols, call.count = x.data_ptr(), x.shape[:-1].numel(), cols, count
    call.type, call.planes, call.silu, call.isa = native.FLOATS[x.dtype], 2 if exact else 1, silu, _isa_number()
    call.weights[:count] = [weight.data_ptr() for weight in weights]
    call.out_features[:count] = out_features
    call.outs[: len(outs)] = [out.data_ptr() for out in outs]
    if biases:
        call.biases[:count] = [bias.data_ptr() for bias in biases]
    if norm is not None:
        call.norm, call.norm_eps = norm.data_ptr(), norm_eps
    if residual is not None:
        residual = residual.contiguous()
        call.residual = residual.data_ptr()
    status = native.require().llmquant_linear(ctypes.byref(call))
    if status:
        native.check(status, native.isa())
    return outs


@cache
def _isa_number() -> int:
    return native.ISAS.index(native.isa())


def embedding(ids: Tensor, weight: Tensor, in_features: int, dtype: torch.dtype) -> Tensor:
    """What the op `cpu_embedding` runs: rows of a prepared weight, as kernels/ops/embedding_int.py defines it.

    Raises:
        IndexError: if an id is outside the vocabulary.
    """
    packed, scale, zeros = select_rows(weight, ids.flatten().long())
    rows = native.unpack_rows(packed, scale, zeros, bits=header(weight).bits, in_features=in_features, dtype=dtype)
    return rows.reshape(*ids.shape, in_features)


def _check(x: Tensor, bias: Tensor | None, out_features: int) -> None:
    torch._check(
        x.dtype in native.FLOATS and x.ndim > 0 and x.device.type == "cpu",
        lambda: f"x is a float32, bfloat16 or float16 [..., in_features] on the CPU, got {x.dtype} on {x.device}",
    )
    torch._check(
        bias is None or (tuple(bias.shape) == (out_features,) and bias.dtype == x.dtype and bias.is_contiguous()),
        lambda: f"the bias is {x.dtype} [{out_features}], like x and the outputs; got {bias}",
    )


def _fake(x: Tensor, _weight: Tensor, bias: Tensor | None, out_features: int, _how: bool | Tensor | None) -> Tensor:
    _check(x, bias, out_features)
    return x.new_empty((*x.shape[:-1], out_features))


def _fake_fused(x: Tensor, *asked: Any, **named: Any) -> list[Tensor]:
    product = Product(*asked, **named)
    _check(x, None, 0)
    product.check(x, _PARTS)
    return product.empty(x)


def _dense(weight: Tensor, _out_features: int, _in_features: int, dtype: torch.dtype) -> Tensor:
    return dequantize(*restore(weight), dtype)


def _dense_saved(saved: Sequence[Tensor], _: Any, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.ops.llmquant.cpu_dense.default(*saved, *shape, dtype)


def unpack_rows(
    packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, in_features: int, dtype: torch.dtype
) -> Tensor:
    """`UnpackRows` of kernels/ops/dequantize.py, by the library where it can: in one pass, without temporaries."""
    if not {scales.dtype, dtype} <= native.FLOATS.keys() or native.library() is None:
        return definition.unpack_rows(packed, scales, zeros, bits, in_features, dtype)
    return native.unpack_rows(packed, scales, zeros, bits=bits, in_features=in_features, dtype=dtype)


dequantize = partial(definition.dequantize_by, unpack_rows)

_library = torch.library.Library("llmquant", "FRAGMENT")
_library.impl("dequantize_int", dequantize, "CPU")
_library.impl("embedding_int", partial(embedding_by, unpack_rows), "CPU")
for _bits in BITS:
    _library.impl(f"linear_int{_bits}", partial(linear_by, dequantize, _bits), "CPU")

_define = partial(define, _library, keys=("CPU",))
_define("cpu_linear(Tensor x, Tensor weight, Tensor? bias, SymInt out_features, bool exact) -> Tensor", linear, _fake)
_define(
    "cpu_linear_w8a8(Tensor x, Tensor weight, Tensor? bias, SymInt out_features, Tensor? input_scale) -> Tensor",
    linear_w8a8,
    _fake,
)
_define(
    f"cpu_linear_fused(Tensor x, Tensor[] weights, Tensor[] biases, SymInt[] out_features, {ASKED}) -> Tensor[]",
    lambda x, *asked, **named: linear_fused(x, Product(*asked, **named)),
    _fake_fused,
)
_define(
    "cpu_embedding(Tensor ids, Tensor weight, SymInt in_features, ScalarType dtype) -> Tensor",
    embedding,
    lambda ids, weight, in_features, dtype: weight.new_empty((*ids.shape, in_features), dtype=dtype),
)
_define(
    "cpu_dense(Tensor weight, SymInt out_features, SymInt in_features, ScalarType dtype) -> Tensor",
    _dense,
    lambda weight, out_features, in_features, dtype: weight.new_empty((out_features, in_features), dtype=dtype),
)
for _name in ("cpu_linear", "cpu_linear_w8a8"):
    register_gradient(_name, _dense_saved, bias=2, library=_library)
