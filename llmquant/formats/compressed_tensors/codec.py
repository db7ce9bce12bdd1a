"""The compressed-tensors layout: the tensors of one module.

With N = out_features, K = in_features, G = groups (1 per channel), b = bits, a module stores

    pack-quantized   weight_packed int32 (N, ceil(K*b/32)), weight_scale (N, G), weight_shape int64 [N, K], and if
                     asymmetric weight_zero_point int32 (ceil(N*b/32), G), packed along N
    per tensor       the same with weight_scale (1,) and a plain int8 weight_zero_point (1,)
    int-quantized    weight int8 (N, K), weight_scale (N, 1): 8-bit activations (W8A8). Where all activations of a
                     module have one scale (w8a8-static), input_scale (1,) too; only training makes such layers

Checked against compressed-tensors 0.17 and 0.20 by golden files; 3 bits are packed densely as 0.20 does, which 0.17
cannot read.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from llmquant.errors import CheckpointError, QuantizationError
from llmquant.numerics.pack import pack, pack_zeros, packed_words, unpack, unpack_zeros
from llmquant.numerics.quantized import QuantizedTensor
from llmquant.spec import Scheme


def encode(name: str, quantized: QuantizedTensor, scheme: Scheme) -> dict[str, Tensor]:
    """Turn one quantized weight into the tensors that a checkpoint stores, under their full names.

    Raises:
        QuantizationError: if `quantized` does not fit the scheme, or the scheme needs more than a weight.
    """
    _check_parts(name, quantized, scheme)
    codes, scales = quantized.codes, quantized.scales.contiguous()
    if scheme.activations:
        return {f"{name}.weight": codes.contiguous(), f"{name}.weight_scale": scales}
    per_tensor = scheme.granularity == "tensor"
    tensors = {
        f"{name}.weight_packed": pack(codes, scheme.bits),
        f"{name}.weight_scale": scales.reshape(1) if per_tensor else scales,
        f"{name}.weight_shape": torch.tensor(codes.shape, dtype=torch.int64),
    }
    if quantized.zeros is not None:
        zeros = quantized.zeros.reshape(1) if per_tensor else pack_zeros(quantized.zeros, scheme.bits)
        tensors[f"{name}.weight_zero_point"] = zeros
    return tensors


def decode(name: str, tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedTensor:
    """Read one quantized weight back, the inverse of `encode`, from tensors that are at least those of the module.

    Raises:
        CheckpointError: if a tensor is missing or has another dtype or shape than the scheme says.
    """

    def part(suffix: str, dtype: torch.dtype | None, shape: tuple[int, ...] | None) -> Tensor:
        tensor = tensors.get(f"{name}.{suffix}")
        if tensor is None:
            raise CheckpointError(f"{name}: the checkpoint has no {name}.{suffix}, which {scheme} needs")
        if (dtype and tensor.dtype != dtype) or (shape is not None and tuple(tensor.shape) != shape):
            wanted = f"{dtype or 'float'} {list(shape) if shape is not None else ''}"
            raise CheckpointError(f"{name}.{suffix}: is {tensor.dtype} {list(tensor.shape)}, {scheme} wants {wanted}")
        return tensor

    if scheme.activations:
        codes = part("weight", torch.int8, None)
        if codes.ndim != 2:
            raise CheckpointError(f"{name}.weight: has {codes.ndim} dimensions, {scheme} wants 2")
        return QuantizedTensor(codes, part("weight_scale", None, (codes.shape[0], 1)))
    out_features, in_features = part("weight_shape", torch.int64, (2,)).tolist()
    if not scheme.divides(in_features):
        raise CheckpointError(f"{name}: in_features {in_features} are no multiple of the group of {scheme}")
    wanted = _layout((out_features, in_features), scheme)
    parts = {suffix: part(suffix, dtype, shape) for suffix, (dtype, shape) in wanted.items()}
    codes = unpack(parts["weight_packed"], scheme.bits, in_features)
    scales, zeros = parts["weight_scale"], parts.get("weight_zero_point")
    if scheme.granularity == "tensor":
        return QuantizedTensor(codes, scales.reshape(1, 1), None if zeros is None else zeros.reshape(1, 1))
    return QuantizedTensor(codes, scales, None if zeros is None else unpack_zeros(zeros, scheme.bits, out_features))


def payload_bytes(shape: tuple[int, int], scheme: Scheme, scale_dtype: torch.dtype) -> int:
    return stored_bytes(shape, scheme, scale_dtype) - (0 if scheme.activations else 2 * torch.int64.itemsize)


def stored_bytes(shape: tuple[int, int], scheme: Scheme, scale_dtype: torch.dtype) -> int:
    parts = _layout(shape, scheme).values()
    return sum(prod(part) * (dtype or scale_dtype).itemsize for dtype, part in parts)


def suffixes(scheme: Scheme) -> tuple[str, ...]:
    """The tensors that a module of this scheme has, instead of (or, for W8A8, besides) its float `weight`."""
    if scheme.activations:
        return ("weight", "weight_scale")
    return ("weight_packed", "weight_scale", "weight_shape", *(() if scheme.symmetric else ("weight_zero_point",)))


def _layout(shape: tuple[int, int], scheme: Scheme) -> Mapping[str, tuple[torch.dtype | None, tuple[int, ...]]]:
    """Dtype (None: that of scales) and shape of each tensor that stands for a weight (out_features, in_features)."""
    out_features, in_features = shape
    scales = scheme.scale_shape(out_features, in_features)
    if scheme.activations:
        return {"weight": (torch.int8, shape), "weight_scale": (None, scales)}
    per_tensor = scheme.granularity == "tensor"
    zeros = (torch.int8, (1,)) if per_tensor else (torch.int32, (packed_words(out_features, scheme.bits), scales[1]))
    return {
        "weight_packed": (torch.int32, (out_features, packed_words(in_features, scheme.bits))),
        "weight_scale": (None, (1,) if per_tensor else scales),
        "weight_shape": (torch.int64, (2,)),
    } | ({} if scheme.symmetric else {"weight_zero_point": zeros})


def _check_parts(name: str, quantized: QuantizedTensor, scheme: Scheme) -> None:
    if scheme.is_keep or scheme.activations == "static":
        raise QuantizationError(f"{name}: {scheme} cannot be written as a quantized weight")
    codes, scales, zeros = quantized.codes, quantized.scales, quantized.zeros
    if codes.dtype != torch.int8 or codes.ndim != 2:
        raise QuantizationError(f"{name}: codes are {codes.dtype} {list(codes.shape)}, wanted int8 with 2 dimensions")
    if not scheme.divides(codes.shape[1]):
        raise QuantizationError(f"{name}: in_features {codes.shape[1]} are no multiple of the group of {scheme}")
    shape = scheme.scale_shape(*codes.shape)
    if tuple(scales.shape) != shape or not scales.is_floating_point():
        raise QuantizationError(f"{name}: scales are {scales.dtype} {list(scales.shape)}, {scheme} wants {list(shape)}")
    if scheme.symmetric != (zeros is None):
        raise QuantizationError(f"{name}: zeros are {'missing' if zeros is None else 'given'} for {scheme}")
    if zeros is not None and (tuple(zeros.shape) != shape or zeros.dtype != torch.int8):
        raise QuantizationError(f"{name}: zeros are {zeros.dtype} {list(zeros.shape)}, wanted int8 {list(shape)}")
