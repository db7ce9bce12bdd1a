"""Packed integers to floats: the op `llmquant::dequantize_int`.

    dequantize_int(Tensor packed, Tensor scale, Tensor? zero, int bits, SymInt in_features, ScalarType dtype) -> Tensor

The result (out_features, in_features) is `(codes - zeros) * scales`, computed in the dtype of the scales as
compressed-tensors does, and then cast to `dtype`. So a packed layer gives the bits of the dense layer that plain
transformers makes of the same file. The arguments are those of a `PackedWeight` (kernels/product.py).

kernels/cpu/ops.py registers a pass without temporaries for the CPU, with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from llmquant.kernels.ops.frozen import define
from llmquant.kernels.product import PackedWeight
from llmquant.numerics.pack import unpack
from llmquant.numerics.quantized import QuantizedTensor

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
    weight = PackedWeight(packed, scale, zero, bits, in_features)
    weight.check()
    scales = scale.reshape(1, 1) if scale.ndim == 1 else scale
    return rows(packed, scales, weight.zeros(), bits, in_features, dtype)


#: What the op means.
dequantize_reference = partial(dequantize_by, unpack_rows)


def _fake(
    packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, in_features: int, dtype: torch.dtype
) -> Tensor:
    PackedWeight(packed, scale, zero, bits, in_features).check()
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
