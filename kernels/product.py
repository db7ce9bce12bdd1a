"""The two nouns of the kernels: `PackedWeight`, as checkpoints store it, and `Product`, what is asked of a linear call.

A packed weight is five arguments of an op, in this order; the tensors are those of a compressed-tensors file:

packed       (out_features, ceil(in_features * bits / 32)) int32
scale        (out_features, groups), or (1,) or (1, 1) for one scale per tensor; a float dtype
zero         (ceil(out_features * bits / 32), groups) int32, packed along the outputs; int8 like `scale` per tensor;
             None for symmetric weights
bits         of a code
in_features  columns

The ops of every device end in the fields of a product:

weights       one prepared weight or several, which share their input
biases        none, or one (out_features,) in the dtype of x for each weight
out_features  of each weight
exact         16-bit activations; else 8-bit, where the kernels of the device have them
norm          (in_features,) weight of an RMSNorm of x that comes first, in float32; norm_eps is its epsilon
residual      (..., out_features) added to a single result
silu          the two weights are gate and up: the one result is silu(gate) * up
form          how the weights lie in their bytes, where the bytes do not say it (gpu/weight.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llmquant.numerics.pack import unpack_zeros
from llmquant.spec import BITS

#: How the ops take a product.
ASKED = "bool exact, Tensor? norm=None, float norm_eps=0., Tensor? residual=None, bool silu=False"


class PackedWeight(NamedTuple):
    """See the module docstring."""

    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    in_features: int

    @property
    def out_features(self) -> int:
        """Rows."""
        return self.packed.shape[0]

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.in_features // self.scale.shape[-1]

    def zeros(self) -> Tensor | None:
        """Zeros as int8, (out_features, groups) or (1, 1)."""
        if self.zero is None:
            return None
        if self.zero.dtype == torch.int8:
            return self.zero.reshape(1, 1)
        return unpack_zeros(self.zero, self.bits, self.out_features)

    def why_unclear(self) -> str | None:
        """Why kernel layouts could not give the tensors back, in words.

        There one scale for all outputs is told from one scale per output by its shape.
        """
        shared = self.scale.numel() == 1 and self.out_features > 1
        if shared and any(part is not None and part.ndim != 1 for part in (self.scale, self.zero)):
            return f"one scale of shape {list(self.scale.shape)}, not [1]"
        return None

    def check(self) -> None:
        """Refuse tensors that are no packed weight.

        Raises:
            RuntimeError: by torch._check, so that tracing keeps the conditions; says what was got and what was wanted.
        """
        packed, scale, zero, bits, in_features = self
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
                for name, part in zip(self._fields, self[:3], strict=False)
            )
            return (
                f"a weight with {in_features} inputs at {bits} bits (of {', '.join(map(str, BITS))}) is packed int32 "
                f"[out_features, {words}], scale float [out_features, groups] with groups that divide the inputs, or "
                f"[1], and zero none, int32 {list(zero_shape)} or, with one scale, int8 [1]; got {got}"
            )

        torch._check(fits, message)


class Product(NamedTuple):
    """See the module docstring."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    out_features: Sequence[int]
    exact: bool = True
    norm: Tensor | None = None
    norm_eps: float = 0.0
    residual: Tensor | None = None
    silu: bool = False
    form: Sequence[int] = ()

    @property
    def widths(self) -> Sequence[int]:
        """The outputs of each result."""
        return self.out_features[:1] if self.silu else self.out_features

    def empty(self, x: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Room for the results: (..., width) each, in the dtype of x if no other is given."""
        rows = x.shape[:-1]
        return [x.new_empty((*rows, width), dtype=dtype or x.dtype) for width in self.widths]

    def check(self, x: Tensor, most: int) -> None:
        """Refuse what does not fit together or belongs to another x; the device looks at x and the weights.

        Raises:
            RuntimeError: says what was got and what was wanted.
        """
        weights, biases, out_features, _, norm, _, residual, silu, _ = self
        count = len(weights)
        if not (
            0 < count <= most
            and len(out_features) == count
            and len(biases) in (0, count)
            and (not silu or (count == 2 and out_features[0] == out_features[1]))
            and (residual is None or silu or count == 1)
        ):
            raise RuntimeError(
                f"one to {most} weights, all or none with a bias; two of one size with silu; a residual for a single "
                f"result; got {count} weights of {list(out_features)}, {len(biases)} biases, silu={silu}, "
                f"{'no' if residual is None else 'a'} residual"
            )
        for number, bias in enumerate(biases):
            _check_like(x, "bias", bias, (out_features[number],))
        if norm is not None:
            _check_like(x, "norm", norm, x.shape[-1:])
        if residual is not None:
            _check_like(x, "residual", residual.contiguous(), (*x.shape[:-1], out_features[0]))


def _check_like(x: Tensor, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype != x.dtype or tensor.shape != shape or tensor.device != x.device or not tensor.is_contiguous():
        raise RuntimeError(
            f"the {name} is {x.dtype} {list(shape)} on {x.device}, like x, and contiguous; got {tensor.dtype} "
            f"{list(tensor.shape)} of strides {tensor.stride()} on {tensor.device}"
        )
