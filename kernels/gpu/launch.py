"""Which kernel multiplies: by the number of rows, and the accuracy.

`linear` and `linear_fused` are what the ops in ops.py run. Rows of `x` decide: few to some hundred go to the kernel of
linear_a16.py, for many the weight is made dense, piece by piece, and the library multiplies. In accuracy "fast" 4-bit
weights go to the kernel of linear_a8.py, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from llmquant.kernels.gpu import launch_a8, launch_a16, runtime
from llmquant.kernels.gpu.choose import dispatch
from llmquant.kernels.gpu.choose.config import DENSE, Config
from llmquant.kernels.gpu.fallback import note_fallback
from llmquant.kernels.gpu.launch_dense import linear_dense
from llmquant.kernels.gpu.weight import DTYPES, Format
from llmquant.kernels.gpu.work import MOST_PARTS, question
from llmquant.kernels.product import Product


def check(x: Tensor, product: Product) -> Format:
    """Refuse what the kernels would read or write wrongly, also when it is only traced; the format of the weights.

    Raises:
        RuntimeError: says what was got and what was wanted.
    """
    has = Format.read(product.form)
    if not (x.dtype in DTYPES and x.ndim and x.shape[-1] == has.in_features):
        raise RuntimeError(
            f"x is bfloat16, float16 or float32 [..., {has.in_features}], got {x.dtype} {list(x.shape)}; cast it, or "
            "look at the layer in front"
        )
    product.check(x, MOST_PARTS)
    for weight, n in zip(product.weights, product.out_features, strict=True):
        size = has.offsets(n)[2]
        if weight.device != x.device or weight.dtype != torch.uint8 or weight.shape != (size,):
            raise RuntimeError(
                f"the weight of {n} outputs is prepared, uint8 [{size}] on {x.device} like x; got {weight.dtype} "
                f"{list(weight.shape)} on {weight.device}; move the model or x"
            )
    return has


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int,
    form: Sequence[int],
    exact: bool = True,
    *,
    config: Config | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`x @ weight.T + bias`, as `linear_fused` of one weight; `form` is `Format.numbers()`."""
    product = Product([weight], [] if bias is None else [bias], [out_features], exact, form=form)
    return linear_fused(x, product, config=config, out_dtype=out_dtype)[0]


def linear_fused(
    x: Tensor, product: Product, *, config: Config | None = None, out_dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Several weights on one input in one launch, with what comes before and after them.

    There are up to three weights of one format; `exact` off quantizes x to 8 bits for weights of at most 4. `config`
    says how to cut the work, where it is not for dispatch.py to choose; `out_dtype` of None is that of x.

    Returns:
        one (..., out_features) for each weight; with `silu` one for both.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit.
    """
    has = check(x, product)
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        with torch.cuda.device(x.device):  # Triton launches on the current one
            return linear_fused(x, product, config=config, out_dtype=out_dtype)
    norm, residual = product.norm, product.residual
    if norm is not None:
        x = functional.rms_norm(x, norm.shape, norm, product.norm_eps).to(x.dtype)  # autocast makes it float32
    rows = x.reshape(-1, has.in_features)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    if rows.data_ptr() % 16:  # Triton would compile a slower kernel for it
        rows = rows.clone()
    if not rows.shape[0]:
        return product.empty(x, out_dtype)
    if residual is not None:
        product = product._replace(residual=residual.reshape(rows.shape[0], -1).contiguous())
    fast = not product.exact and has.word_bits == 4 and x.dtype != torch.float32
    outs = _product(fast, has, rows, product, config, out_dtype or x.dtype)
    return [out.view(*x.shape[:-1], out.shape[-1]) for out in outs]


def _product(
    fast: bool, has: Format, x: Tensor, product: Product, config: Config | None, out_dtype: torch.dtype
) -> list[Tensor]:
    """By a kernel, or by dense weights: where those are better, and for what the compiler refuses."""
    kind = "w4a8" if fast else f"w{has.word_bits}a{8 * x.element_size()}"
    asked = question(kind, x.device, x.shape[0], sum(product.out_features), has.in_features, has.unit)
    chosen = config or dispatch.choose(**asked)
    run = launch_a8.linear_w4a8 if fast else launch_a16.linear_a16
    if chosen != DENSE:
        try:
            return run(x, product, config=chosen, out_dtype=out_dtype)
        except Exception as error:
            if config is not None or not _of_compiler(error):
                raise
            note_fallback(f"{kind} with {chosen} on {asked['arch']} runs with dense weights: {type(error).__name__}")
            dispatch.give_up(**asked, instead=DENSE)
    return linear_dense(x, product, out_dtype)


def _of_compiler(error: Exception) -> bool:
    """Whether Triton cannot compile or launch a configuration; what goes wrong in the interpreter is a bug."""
    from triton.errors import TritonError

    return not runtime.interpreting() and (isinstance(error, TritonError) or "PassManager" in str(error))
