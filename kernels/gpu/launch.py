"""From tensors to launches: which kernel runs for how many rows, and its arguments.

`linear` and `linear_fused` are what the ops in ops.py run. Rows of `x` decide: few to some hundred go to the kernel of
linear_a16.py, or in accuracy "fast" to that of linear_a8.py; for many rows the weight is made dense, piece by piece,
and the library multiplies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llmquant.kernels.gpu import counters, dispatch, runtime
from llmquant.kernels.gpu.config import DENSE, Config
from llmquant.kernels.gpu.fallback import note_fallback
from llmquant.kernels.gpu.weight import DTYPES, TILE_K, TILE_N, Format

MOST_PARTS = 3
_TILE = Config(0, TILE_N, stages=1)  # of dense.py
_DENSE_BYTES = 64 << 20  # of a dense piece of a weight


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
    where = runtime.arch(x.device), kind, x.shape[0], sum(out_features), has.in_features, has.unit
    chosen = config or dispatch.choose(*where, processors=processors(x.device))
    if fast:
        from llmquant.kernels.gpu.launch_a8 import linear_w4a8 as run
    else:
        run = _linear_a16
    if chosen != DENSE:
        try:
            return run(x, *described, config=chosen, out_dtype=out_dtype)
        except Exception as error:
            if config is not None or not _of_compiler(error):
                raise
            note_fallback(f"{kind} with {chosen} on {where[0]} runs with dense weights: {type(error).__name__}")
            dispatch.give_up(*where, processors=processors(x.device), instead=DENSE)
    return _dense(x, weights, biases, out_features, has, residual, silu, out_dtype)


def _of_compiler(error: Exception) -> bool:
    """Whether Triton cannot compile or launch a configuration; what goes wrong in the interpreter is a bug."""
    from triton.errors import TritonError

    return not runtime.interpreting() and (isinstance(error, TritonError) or "PassManager" in str(error))


def _linear_a16(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_features: Sequence[int],
    form: list[int],
    residual: Tensor | None,
    silu: bool,
    *,
    config: Config,
    out_dtype: torch.dtype,
) -> list[Tensor]:
    from llmquant.kernels.gpu.linear_a16 import linear_a16

    has, m = Format.read(form), x.shape[0]
    count = 1 if silu else len(weights)
    outs = [x.new_empty((m, n), dtype=out_dtype) for n in out_features[:count]]
    grid, partials, arrivals = split_work(x, config, out_features, silu, torch.float32)
    padded = [*range(len(weights)), *[0] * (MOST_PARTS - len(weights))]
    linear_a16[grid](
        x,
        *(weights[part] for part in padded),
        *(biases[part] if biases else x for part in padded),
        x if residual is None else residual,
        *(outs[part if part < count else 0] for part in padded),
        partials,
        arrivals,
        m,
        has.in_features,
        x.stride(0) if m > 1 else has.in_features,
        *(out_features[part] for part in padded),
        **_compile_time(
            has, config, x.dtype, len(weights), silu, bool(biases), residual is not None, runtime.interpreting()
        ),
    )
    return outs


@lru_cache(maxsize=4096)
def _compile_time(
    has: Format, config: Config, dtype: torch.dtype, parts: int, silu: bool, bias: bool, residual: bool, _: bool
) -> dict[str, Any]:
    """Everything that the compiler sees; kept, since each call of a layer asks."""
    return {
        **constants_a16(has, config, dtype, parts, silu, bias, residual),
        **options(config),
        **_registers(has, config, parts),
    }


def constants_a16(
    has: Format, config: Config, dtype: torch.dtype, parts: int, silu: bool, bias: bool, residual: bool
) -> dict[str, Any]:
    """The compile-time arguments of linear_a16; also what the compile gates compile.

    Args:
        has: format of the weights.
        config: of the launch.
        dtype: of x.
        parts: how many weights.
        silu: as in `linear_fused`.
        bias: whether there are biases.
        residual: whether there is a residual.
    """
    return {
        "BITS": has.word_bits,
        "UNIT": has.unit,
        "ASYMMETRIC": has.asymmetric,
        "SCALE": triton_dtype(has.scale_dtype),
        "PARTS": parts,
        "SILU": silu,
        "BIAS": bias,
        "RESIDUAL": residual,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "SPLIT_K": config.split_k,
        "EVEN_K": has.in_features % TILE_K == 0,
        "ASM": uses_asm() and dtype != torch.float32,
        "PDL": config.pdl and torch.version.hip is None,
    }


@cache
def triton_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]


def uses_asm() -> bool:
    """Whether the kernels use inline PTX: on NVIDIA GPUs."""
    return torch.version.hip is None and not runtime.interpreting()


def options(config: Config) -> dict[str, Any]:
    """How Triton shall compile a launch."""
    chosen: dict[str, Any] = {"num_warps": config.warps, "num_stages": config.stages}
    if not runtime.interpreting():
        chosen["enable_fp_fusion"] = True
        if config.pdl and torch.version.hip is None:
            chosen["launch_pdl"] = True
    return chosen


def _registers(has: Format, config: Config, parts: int) -> dict[str, int]:
    """A limit where the compiler takes more registers than it needs, so that one program more fits on a processor."""
    wider = {4: 128, 8: 256}.get(config.warps)
    plain = not has.asymmetric and parts < MOST_PARTS and not 0 < has.unit < TILE_K
    return {"maxnreg": 128} if uses_asm() and plain and (config.block_m, config.block_n) == (16, wider) else {}


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a device; a few for the interpreter."""
    return (
        _processors(torch.cuda.current_device() if device.index is None else device.index)
        if device.type == "cuda"
        else 8
    )


@cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def split_work(
    x: Tensor, config: Config, out_features: Sequence[int], silu: bool, dtype: torch.dtype
) -> tuple[tuple[int, int, int], Tensor, Tensor]:
    """The grid of a launch, and what split-K needs: room for partial sums, and counters that are zero.

    Args:
        x: (m, in_features).
        config: of the launch.
        out_features: of each weight.
        silu: whether two weights share their blocks.
        dtype: of the sums.
    """
    if silu:
        tiles = -(-out_features[0] // (config.block_n // 2))
    else:
        tiles = sum(-(-n // config.block_n) for n in out_features)
    across = -(-x.shape[0] // config.block_m)
    grid = (across, tiles, config.split_k)
    if config.split_k == 1:
        return grid, x, x
    size = across * tiles * config.split_k * config.block_m * config.block_n
    return grid, x.new_empty(size, dtype=dtype), counters.counters_for(x.device, across * tiles)


def _dense(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_features: Sequence[int],
    has: Format,
    residual: Tensor | None,
    silu: bool,
    out_dtype: torch.dtype,
) -> list[Tensor]:
    """By dense weights, made piece by piece so that a piece stays small."""
    outs = []
    step = max(TILE_N, _DENSE_BYTES // (has.in_features * x.element_size()) // TILE_N * TILE_N)
    for part, (weight, n) in enumerate(zip(weights, out_features, strict=True)):
        out = x.new_empty((x.shape[0], n))
        for first in range(0, n, step):
            count = min(step, n - first)
            torch.mm(x, dense(weight, has, n, x.dtype, first, count).t(), out=out[:, first : first + count])
        outs.append(out.add_(biases[part]) if biases else out)
    if silu:
        outs = [functional.silu(outs[0], inplace=True).mul_(outs[1])]
    if residual is not None:
        outs[0].add_(residual)
    return [out.to(out_dtype) for out in outs]


def dense(
    weight: Tensor, has: Format, out_features: int, dtype: torch.dtype, first: int = 0, count: int | None = None
) -> Tensor:
    """Rows of the dense weight: the bits that llmquant.kernels.dequantize gives for the checkpoint's tensors.

    Args:
        weight: prepared.
        has: its format.
        out_features: its outputs.
        dtype: of the result.
        first: row to begin with, a multiple of 64.
        count: of rows; None for all.

    Returns:
        (count, in_features).
    """
    from llmquant.kernels.gpu.dense import dequantize_tile

    if weight.is_cuda and weight.device.index != torch.cuda.current_device():
        with torch.cuda.device(weight.device):
            return dense(weight, has, out_features, dtype, first, count)
    count = out_features - first if count is None else count
    out = torch.empty(count, has.in_features, dtype=dtype, device=weight.device)
    dequantize_tile[(-(-count // TILE_N), has.tiles_k)](
        weight,
        out,
        out_features,
        has.in_features,
        first,
        count,
        BITS=has.word_bits,
        UNIT=has.unit,
        ASYMMETRIC=has.asymmetric,
        SCALE=triton_dtype(has.scale_dtype),
        DTYPE=triton_dtype(dtype),
        ASM=uses_asm(),
        **options(_TILE),
    )
    return out


def check(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_features: Sequence[int],
    has: Format,
    norm: Tensor | None = None,
    residual: Tensor | None = None,
    silu: bool = False,
) -> None:
    """Refuse what the kernels would read or write wrongly.

    Raises:
        RuntimeError: says what was got and what was wanted.
    """
    count = len(weights)
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


def _check_like(x: Tensor, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.device != x.device or tensor.dtype != x.dtype or tensor.shape != shape:
        raise RuntimeError(
            f"the {name} is {x.dtype} {list(shape)} on {x.device}, like x; got {tensor.dtype} {list(tensor.shape)} on "
            f"{tensor.device}"
        )
