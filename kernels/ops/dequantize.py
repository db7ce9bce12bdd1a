"""Packed integers to floats: the op `llmquant::dequantize_int`, its torch reference, and the C++ path on the CPU.

The result is `(codes - zeros) * scales`, computed in the dtype of the scales as compressed-tensors does, and then cast.
So a packed layer gives the bits of the dense layer that plain transformers makes of the same file.

The tensors are those of a compressed-tensors file (see formats/compressed_tensors/codec.py):

    packed  (out_features, ceil(in_features * bits / 32)) int32
    scale   (out_features, groups), or (1,) or (1, 1) for one scale per tensor; a float dtype
    zero    (ceil(out_features * bits / 32), groups) int32, packed along the outputs; int8 like `scale` per tensor;
            None for symmetric weights
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmquant.kernels.cpu import native
from llmquant.numerics.pack import unpack, unpack_zeros
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import BITS

_library = torch.library.Library("llmquant", "FRAGMENT")


def dequantize(
    packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, in_features: int, dtype: torch.dtype
) -> Tensor:
    """The dense weight (out_features, in_features) of `dtype`; shapes as in the module docstring.

    On the CPU the C++ kernel does it in one pass, without temporaries; else `dequantize_reference`. Same bits.
    """
    check_weight(packed, scale, zero, bits, in_features)
    in_cpp = packed.device.type == "cpu" and scale.dtype in native.FLOATS and dtype in native.FLOATS
    if not in_cpp or native.library() is None:
        return dequantize_reference(packed, scale, zero, bits, in_features, dtype)
    scales = scale.reshape(1, 1) if scale.ndim == 1 else scale
    zeros = plain_zeros(zero, bits, packed.shape[0])
    return native.unpack_rows(packed, scales, zeros, bits=bits, in_features=in_features, dtype=dtype)


def dequantize_reference(
    packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, in_features: int, dtype: torch.dtype
) -> Tensor:
    """What `dequantize` means, in plain torch on any device. Needs a few times the memory of the dense weight."""
    scales = scale.reshape(1, 1) if scale.ndim == 1 else scale
    zeros = plain_zeros(zero, bits, packed.shape[0])
    return QuantizedTensor(unpack(packed, bits, in_features), scales, zeros).dequantize().to(dtype)


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


_library.define(
    "dequantize_int(Tensor packed, Tensor scale, Tensor? zero, int bits, SymInt in_features, ScalarType dtype)"
    " -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.impl("dequantize_int", dequantize, "CompositeExplicitAutograd")
torch.library.register_fake("llmquant::dequantize_int", _fake, lib=_library)
