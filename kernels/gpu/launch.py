"""Which kernel multiplies: by the number of rows, and the accuracy.

`linear` and `linear_fused` are what the ops in ops.py run. Rows of `x` decide: few to some hundred go to the kernel of
linear_a16.py, for many the weight is made dense, piece by piece, and the library multiplies. In accuracy "fast" 4-bit
weights go to the kernel of linear_a8.py, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llmquant.kernels.gpu import launch_a8, launch_a16, runtime
from llmquant.kernels.gpu.checks import check
from llmquant.kernels.gpu.choose import dispatch
from llmquant.kernels.gpu.choose.config import DENSE, Config
from llmquant.kernels.gpu.fallback import note_fallback
from llmquant.kernels.gpu.launch_dense import linear_dense
from llmquant.kernels.gpu.weight import Format
from llmquant.kernels.gpu.work import question


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int,
    form: list[int],
    exact: bool = True,
    *,
    config: Config | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`x @ weight.T + bias`.

    Args:
        x: (..., in_features) bfloat16, float16 or float32.
        weight: prepared (weight.py), where x lies.
        bias: (out_features,) in the dtype of x.
        out_features: those of the weight.
        form: its format, as `Format.numbers()`.
        exact: 16-bit activations; else 8-bit, for weights of at most 4 bits.
        config: how to cut the work; None for what dispatch.py chooses.
        out_dtype: of the result; None for that of x.

    Returns:
        (..., out_features).

    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit.
    """
    biases = [] if bias is None else [bias]
    return linear_fused(x, [weight], biases, [out_features], form, exact, config=config, out_dtype=out_dtype)[0]


def linear_fused(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_features: Sequence[int],
    form: list[int],
    exact: bool = True,
    norm: Tensor | None = None,
    norm_eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    *,
    config: Config | None = None,
    out_dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Several weights on one input in one launch, with what comes before and after them.

    Args:
        x: as in `linear`.
        weights: up to three prepared weights of one format.
        biases: none, or one (out_features,) for each weight.
        out_features: of each weight.
        form: the format of all weights.
        exact: as in `linear`.
        norm: (in_features,) weight of an RMSNorm of x that comes first.
        norm_eps: its epsilon.
        residual: (..., out_features) added to the result, which is then a single one.
        silu: the result is SiLU(x @ weights[0].T) * (x @ weights[1].T).
        config: as in `linear`.
        out_dtype: as in `linear`.

    Returns:
        one (..., out_features) for each weight; with `silu` one for both.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit.
    """
    has = Format.read(form)
    check(x, weights, biases, out_features, has, norm, residual, silu)
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        with torch.cuda.device(x.device):  # Triton launches on the current one
            return linear_fused(
                x, weights, biases, out_features, form, exact, norm, norm_eps, residual, silu,
                config=config, out_dtype=out_dtype,
            )  # fmt: skip
    if norm is not None:
        x = functional.rms_norm(x, norm.shape, norm, norm_eps).to(x.dtype)  # autocast makes it float32
    rows = x.reshape(-1, has.in_features)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    if rows.data_ptr() % 16:  # Triton would compile a slower kernel for it
        rows = rows.clone()
    if not rows.shape[0]:
        dtype = out_dtype or x.dtype
        return [x.new_empty((*x.shape[:-1], n), dtype=dtype) for n in (out_features[:1] if silu else out_features)]
    flat = None if residual is None else residual.reshape(rows.shape[0], -1).contiguous()
    fast = not exact and has.word_bits == 4 and x.dtype != torch.float32
    outs = _product(fast, config, rows, weights, biases, out_features, form, flat, silu, out_dtype=out_dtype or x.dtype)
    return [out.view(*x.shape[:-1], out.shape[-1]) for out in outs]


def _product(fast: bool, config: Config | None, x: Tensor, *described: Any, out_dtype: torch.dtype) -> list[Tensor]:
    """By a kernel, or by dense weights: where those are better, and for what the compiler refuses."""
    weights, biases, out_features, form, residual, silu = described
    has = Format.read(form)
    kind = "w4a8" if fast else f"w{has.word_bits}a{8 * x.element_size()}"
    asked = question(kind, x.device, x.shape[0], sum(out_features), has.in_features, has.unit)
    chosen = config or dispatch.choose(**asked)
    run = launch_a8.linear_w4a8 if fast else launch_a16.linear_a16
    if chosen != DENSE:
        try:
            return run(x, *described, config=chosen, out_dtype=out_dtype)
        except Exception as error:
            if config is not None or not _of_compiler(error):
                raise
            note_fallback(f"{kind} with {chosen} on {asked['arch']} runs with dense weights: {type(error).__name__}")
            dispatch.give_up(**asked, instead=DENSE)
    return linear_dense(x, weights, biases, out_features, has, residual, silu, out_dtype)


def _of_compiler(error: Exception) -> bool:
    """Whether Triton cannot compile or launch a configuration; what goes wrong in the interpreter is a bug."""
    from triton.errors import TritonError

    return not runtime.interpreting() and (isinstance(error, TritonError) or "PassManager" in str(error))
