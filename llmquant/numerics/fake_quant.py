"""Rounding that lets gradients through, for weights that are trained as they will be read.

The values are those of the stored tensors, bit for bit. The gradient of a weight is that of the same computation
without rounding where the code is not clipped, and zero where it is (the straight-through estimator, Bengio et al.
2013, arXiv 1308.3432); that of a scale is the one of LSQ (Esser et al. 2020, arXiv 1902.08153, eq. 3).
Nothing of the size of a weight is kept for the backward pass but the weight itself.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from llmquant.numerics.quantized import QuantizedTensor
from llmquant.numerics.stored_scale import as_stored
from llmquant.numerics.threads import map_chunks, row_chunks
from llmquant.spec import Scheme

_WITHIN = 0.45  # of a step from the middle of a cell; the next begins at 0.5


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, _value: Tensor, rounded: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return rounded.clone()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, None


def straight_through(value: Float[Tensor, "*shape"], rounded: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The values of `rounded` with the gradient of `value`."""
    return _StraightThrough.apply(value, rounded)  # pyright: ignore[reportReturnType]


def stored_scales(scales: Float32[Tensor, "*shape"], dtype: torch.dtype) -> Float32[Tensor, "*shape"]:
    """Scales as they are stored in `dtype`, in float32."""
    return straight_through(scales, as_stored(scales.detach(), dtype))


def dequantize(
    codes: Int8[Tensor, "out in"],
    scales: Float32[Tensor, "rows groups"],
    zeros: Int8[Tensor, "rows groups"] | None,
    dtype: torch.dtype,
    out_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "out in"]:
    """The weight of these codes, as `QuantizedTensor.dequantize` gives it, in `out_dtype`.

    Scales, one row for each output or one for all, are such as `stored_scales` gives them, and get the gradient.
    `dtype` is that of the stored scales, in which readers compute.
    """
    return _Dequantize.apply(codes, scales, zeros, dtype, out_dtype)  # pyright: ignore[reportReturnType]


def fake_quantize(
    weight: Float[Tensor, "out in"],
    scales: Float32[Tensor, "rows groups"],
    zeros: Int8[Tensor, "rows groups"] | None,
    scheme: Scheme,
    dtype: torch.dtype,
    out_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "out in"]:
    """The weight as it is read once it has been rounded to this grid, in `out_dtype`.

    Scales are such as `stored_scales` gives them; `dtype` is that in which they are stored and readers compute. The
    codes are those of `numerics.grid.round_to_grid`. Weight and scales get gradients.
    """
    return _FakeQuantize.apply(weight, scales, zeros, scheme, dtype, out_dtype)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def in_cells(weight: Float[Tensor, "out in"], start: QuantizedTensor) -> Float[Tensor, "out in"]:
    """The values nearest to `weight` that round to the codes of `start`, with a little room for a changed scale."""
    scales = start.scales.float().unsqueeze(-1)
    middle = _grouped(start.codes, start.scales).float()
    middle = middle if start.zeros is None else middle - start.zeros.float().unsqueeze(-1)
    steps = _grouped(weight, start.scales).float() / scales
    inside = torch.minimum(torch.maximum(steps, middle - _WITHIN), middle + _WITHIN)
    return (inside * scales).view(weight.shape).to(weight.dtype)


class _Dequantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        dtype: torch.dtype,
        out_dtype: torch.dtype,
    ) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(codes, zeros)
        ctx.shape = scales.shape
        weight = torch.empty(codes.shape, dtype=out_dtype, device=codes.device)

        def fill(chunk: tuple[int, int]) -> None:
            part, rows = slice(*chunk), _rows(scales, chunk)
            steps = _grouped(codes[part], scales).to(dtype)
            weight[part] = _times(steps, scales[rows], zeros, rows, dtype).view(steps.shape[0], -1)

        map_chunks(fill, _chunks(codes), codes.device)
        return weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        codes, zeros = ctx.saved_tensors

        def sums(chunk: tuple[int, int]) -> Tensor:
            steps = _grouped(codes[slice(*chunk)], ctx.shape).float()
            if zeros is not None:
                steps -= zeros[_rows(ctx.shape, chunk)].float().unsqueeze(-1)
            return (steps * _grouped(gradient[slice(*chunk)], ctx.shape)).sum(-1)

        return None, _gathered(map_chunks(sums, _chunks(codes), codes.device), ctx.shape), None, None, None


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        scheme: Scheme,
        dtype: torch.dtype,
        out_dtype: torch.dtype,
    ) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(weight, scales, zeros)
        ctx.scheme = scheme
        read = torch.empty_like(weight, dtype=out_dtype)

        def fill(chunk: tuple[int, int]) -> None:
            part, rows = slice(*chunk), _rows(scales, chunk)
            codes = _positions(weight[part], scales, zeros, rows)[1].clamp_(scheme.code_min, scheme.code_max)
            read[part] = _times(codes.to(dtype), scales[rows], zeros, rows, dtype).view(codes.shape[0], -1)

        map_chunks(fill, _chunks(weight), weight.device)
        return read

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, scales, zeros = ctx.saved_tensors
        scheme, learns_scales = ctx.scheme, ctx.needs_input_grad[1]
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[0] else None

        def fill(chunk: tuple[int, int]) -> Tensor | None:
            part, rows = slice(*chunk), _rows(scales, chunk)
            steps, codes = _positions(weight[part], scales, zeros, rows)
            clamped = codes.clamp(scheme.code_min, scheme.code_max)
            inside, reached = clamped == codes, _grouped(gradient[part], scales)
            if to_weight is not None:
                to_weight[part] = (reached * inside).view(codes.shape[0], -1)
            if not learns_scales:
                return None
            if zeros is not None:
                clamped -= zeros[rows].float().unsqueeze(-1)
            return (clamped.sub_(steps.mul_(inside)) * reached).sum(-1)

        sums = map_chunks(fill, _chunks(weight), weight.device)
        to_scales = _gathered(sums, scales.shape) if learns_scales else None
        return to_weight, to_scales, None, None, None, None


def _chunks(weight: Tensor) -> list[tuple[int, int]]:
    return row_chunks(weight.shape[0], weight.shape[1], weight.device)


def _rows(scales: Tensor | torch.Size, chunk: tuple[int, int]) -> slice:
    """The rows of the scales of these rows of the weight."""
    shape = scales.shape if isinstance(scales, Tensor) else scales
    return slice(chunk[0], chunk[1]) if shape[0] > 1 else slice(0, 1)


def _grouped(part: Tensor, scales: Tensor | torch.Size) -> Tensor:
    """(rows, groups, inputs of a group)."""
    shape = scales.shape if isinstance(scales, Tensor) else scales
    return part.reshape(part.shape[0], shape[1], -1)


def _positions(part: Tensor, scales: Tensor, zeros: Tensor | None, rows: slice) -> tuple[Tensor, Tensor]:
    """Where weights lie in units of their scale, and the codes there before clipping."""
    steps = _grouped(part, scales).float() / scales[rows].float().unsqueeze(-1)
    codes = steps.round()
    return steps, codes if zeros is None else codes.add_(zeros[rows].float().unsqueeze(-1))


def _times(codes: Tensor, scales: Tensor, zeros: Tensor | None, rows: slice, dtype: torch.dtype) -> Tensor:
    """`(codes - zeros) * scales`, computed in `dtype`."""
    steps = codes if zeros is None else codes - zeros[rows].to(dtype).unsqueeze(-1)
    return steps * scales.to(dtype).unsqueeze(-1)


def _gathered(sums: list[Any], shape: torch.Size) -> Tensor:
    """The gradient of scales of this shape from those of the chunks."""
    every = torch.cat(sums)
    return every if every.shape == shape else every.sum(0, keepdim=True)
