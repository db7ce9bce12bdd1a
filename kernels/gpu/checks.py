"""What is asked of the arguments of a launch; also when it is only traced."""

from __future__ import annotations

import torch
from torch import Tensor

from llmquant.kernels.gpu.weight import DTYPES, Format
from llmquant.kernels.gpu.work import MOST_PARTS
from llmquant.kernels.product import Product


def check(x: Tensor, product: Product) -> Format:
    """Refuse what the kernels would read or write wrongly; returns the format of the weights.

    Raises:
        RuntimeError: says what was got and what was wanted.
    """
    weights, biases, out_features, _, norm, _, residual, silu, form = product
    has, count = Format.read(form), len(weights)
    if not (x.dtype in DTYPES and x.ndim and x.shape[-1] == has.in_features):
        raise RuntimeError(
            f"x is bfloat16, float16 or float32 [..., {has.in_features}], got {x.dtype} {list(x.shape)}; cast it, or "
            "look at the layer in front"
        )
    if not (
        0 < count <= MOST_PARTS
        and len(out_features) == count
        and len(biases) in (0, count)
        and (not silu or (count == 2 and out_features[0] == out_features[1]))
        and (residual is None or silu or count == 1)
    ):
        raise RuntimeError(
            f"one to {MOST_PARTS} weights, all or none with a bias; two of one size with silu; a residual for a single "
            f"result; got {count} weights of {list(out_features)}, {len(biases)} biases, silu={silu}, "
            f"{'no' if residual is None else 'a'} residual"
        )
    for weight, n in zip(weights, out_features, strict=True):
        size = has.offsets(n)[2]
        if weight.device != x.device or weight.dtype != torch.uint8 or weight.shape != (size,):
            raise RuntimeError(
                f"the weight of {n} outputs is prepared, uint8 [{size}] on {x.device} like x; got {weight.dtype} "
                f"{list(weight.shape)} on {weight.device}; move the model or x"
            )
    for part, bias in enumerate(biases):
        _check_like(x, f"bias {part}", bias, (out_features[part],))
    if norm is not None:
        _check_like(x, "norm", norm, (has.in_features,))
    if residual is not None:
        _check_like(x, "residual", residual, (*x.shape[:-1], out_features[0]))
    return has


def _check_like(x: Tensor, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.device != x.device or tensor.dtype != x.dtype or tensor.shape != shape:
        raise RuntimeError(
            f"the {name} is {x.dtype} {list(shape)} on {x.device}, like x; got {tensor.dtype} {list(tensor.shape)} on "
            f"{tensor.device}"
        )
