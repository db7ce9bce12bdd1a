"""Packed integers to floats: the op `llmquant::dequantize_int`.

    dequantize_int(Tensor packed, Tensor scale, Tensor? zero, int bits, SymInt in_features, ScalarType dtype) -> Tensor

The result (out_features, in_features) is `(codes - zeros) * scales`, computed in the dtype of the scales as
compressed-tensors does, and then cast to `dtype`. So a packed layer gives the bits of the dense layer that plain
transformers makes of the same file. The tensors are those of such a file (see formats/compressed_tensors/codec.py):

    packed  (out_features, ceil(in_features * bits / 32)) int32
    scale   (out_features, groups), or (1,) or (1, 1) for one scale per tensor; a float dtype
    zero    (ceil(out_features * bits / 32), groups) int32, packed along the outputs; int8 like `scale` per tensor;
            None for symmetric weights

kernels/cpu/ops.py registers a pass without temporaries for the CPU, with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from llmquant.kernels.ops.frozen import define
from llmquant.numerics.pack import unpack, unpack_zeros
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import BITS

#: Rows of packed codes, scales and zeros (int8), which are (rows, groups) or (1, 1), bits, in_features and a dtype, to
#: rows of floats.
UnpackRows = Callable[[Tensor, Tensor, "Tensor | None", int, int, torch.dtype], Tensor]


def unpack_rows(
    packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, in_features: int, dtype: torch.dtype
) -> Tensor:
    """The definition of `UnpackRows`, in plain torch. Needs a few times the memory of the dense rows."""
    return QuantizedTensor(unpack(packed, bits, in_features), scales, zeros).dequantize().to(dtype)


def dequantize_by(
    rows: UnpackRows,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    in_features: int,
    dtype: torch.dtype,
) -> Tensor:
    """What the op runs where `rows` unpacks."""
    check_weight(packed, scale, zero, bits, in_features)
    scales = scale.reshape(1, 1) if scale.ndim == 1 else scale
    return rows(packed, scales, plain_zeros(zero, bits, packed.shape[0]), bits, in_features, dtype)


#: What the op means.
dequantize_reference = partial(dequantize_by, unpack_rows)


def check_weight(packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, in_features: int) -> None:
    """Refuse tensors that are no packed weight with `in_features` inputs.

    Raises:
        RuntimeError: by torch._check, so that tracing keeps the conditions; says what was got and what was wanted.
    """
    out_features, groups = packed.shape[0], scale.shape[-1] if scale.ndim else 0
    words = -(-in_features * bits // 32)
    zero_shape = (-(-out_features * bits // 32), groups)
    per_tensor = scale.numel() == 1 and groups == 1
    fits = (
        bits in BITS
        and (packed.dtype, packed.ndim, packed.shape[-1]) == (torch.int32, 2, words)
        and scale.is_floating_point()
        and (per_tensor or (scale.ndim == 2 and scale.shape[0] == out_features))
        and groups > 0
        and in_features % groups == 0
        and (
            zero is None
            or (zero.dtype == torch.int32 and tuple(zero.shape) == zero_shape)
            or (per_tensor and zero.dtype == torch.int8 and zero.shape == scale.shape)
        )
    )

    def message() -> str:
        got = ", ".join(
            f"{name} {'none' if part is None else f'{part.dtype} {list(part.shape)}'}"
            for name, part in (("packed", packed), ("scale", scale), ("zero", zero))
        )
        return (
            f"a weight with {in_features} inputs at {bits} bits (of {', '.join(map(str, BITS))}) is packed int32 "
            f"[out_features, {words}], scale float [out_features, groups] with groups that divide the inputs, or [1], "
            f"and zero none, int32 {list(zero_shape)} or, with one scale, int8 [1]; got {got}"
        )

    torch._check(fits, message)


def plain_zeros(zero: Tensor | None, bits: int, out_features: int) -> Tensor | None:
    """Zeros as int8, (out_features, groups) or (1, 1)."""
    if zero is None:
        return None
    return zero.reshape(1, 1) if zero.dtype == torch.int8 else unpack_zeros(zero, bits, out_features)


def _fake(
    packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, in_features: int, dtype: torch.dtype
) -> Tensor:
    check_weight(packed, scale, zero, bits, in_features)
    return packed.new_empty((packed.shape[0], in_features), dtype=dtype)


_library = torch.library.Library("llmquant", "FRAGMENT")

#: The op, `torch.ops.llmquant.dequantize_int.default`.
dequantize = define(
    _library,
    "dequantize_int(Tensor packed, Tensor scale, Tensor? zero, int bits, SymInt in_features, ScalarType dtype)"
    " -> Tensor",
    dequantize_reference,
    _fake,
)
