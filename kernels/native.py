"""The C++ kernels of kernels/cpu: a shared library with a plain C interface, found beside this file, loaded by ctypes.

The library is built without torch, so one build serves every torch and Python. It holds one variant of each kernel per
instruction set; the widest that this machine can run is used, or the one that `LLMQUANT_CPU_ISA` names (scalar, avx2 or
avx512). All variants give the same bits as the torch reference, so the choice changes the speed only.

Work is split over torch's own threads: `torch_parallel_for` of torch's stable C interface is looked up in the loaded
libtorch_cpu and handed to the library. Where it cannot be found (other than Linux) the library runs on one thread.

An installation without a compiler has no library. `library` says so once, loudly, and callers use the torch reference.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from llmquant.errors import LlmquantError

_log = logging.getLogger(__name__)

ABI = 1  # LLMQUANT_ABI in cpu/api.cpp
ISAS = ("scalar", "avx2", "avx512")
FLOATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # Float in cpu/unpack.h
_ENVIRONMENT = "LLMQUANT_CPU_ISA"
_SUFFIXES = (".so", ".dylib", ".dll")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, or None where llmquant was installed without it; says so in the log, once.

    Raises:
        LlmquantError: if the library that lies there is of another version of llmquant.
    """
    # A wheel and an editable install lay the folder of this package in different places; `files` joins them.
    folder = files("llmquant.kernels")
    path = next(
        (e for e in folder.iterdir() if e.name.startswith("libllmquant_cpu") and e.name.endswith(_SUFFIXES)), None
    )
    if path is None:
        _log.warning(
            "llmquant was installed without its C++ kernels (no compiler, or LLMQUANT_PURE was set): the slow torch "
            "reference is used. With a C++17 compiler, install again: pip install --force-reinstall --no-deps llmquant"
        )
        return None
    return _load(Path(str(path)))


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    if (found := loaded.llmquant_abi()) != ABI:
        raise LlmquantError(f"{path} has interface {found}, this llmquant wants {ABI}; install llmquant again")
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    loaded.llmquant_unpack_rows.argtypes = [pointer] * 4 + [size] * 5 + [number] * 4 + [pointer]
    return loaded


def supported() -> tuple[str, ...]:
    """The instruction sets that both the library and this machine have; empty without the library."""
    loaded = library()
    if loaded is None:
        return ()
    return tuple(name for number, name in enumerate(ISAS) if loaded.llmquant_isa_supported(number))


@cache
def isa() -> str:
    """The instruction set in use: the widest, or what LLMQUANT_CPU_ISA says; "torch" without the library.

    Raises:
        LlmquantError: if LLMQUANT_CPU_ISA is no instruction set, or one that cannot be used here.
    """
    wanted = os.environ.get(_ENVIRONMENT, "")
    if wanted and wanted not in ISAS:
        raise LlmquantError(f"{_ENVIRONMENT} is {wanted!r}; it can be {', '.join(ISAS)}, or unset for the best")
    usable = supported()
    if wanted and wanted not in usable:
        there = f"this machine runs {', '.join(usable)}" if usable else "llmquant was installed without C++ kernels"
        raise LlmquantError(f"{_ENVIRONMENT} asks for {wanted}, but {there}; unset it or choose another")
    return wanted or (usable[-1] if usable else "torch")


@cache
def _parallel_for() -> int | None:
    """Address of torch's parallel loop."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        torch_cpu = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:  # a statically linked torch
        return None
    return ctypes.cast(torch_cpu.torch_parallel_for, ctypes.c_void_p).value


def unpack_rows(
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    *,
    bits: int,
    in_features: int,
    dtype: torch.dtype,
    instructions: str | None = None,
) -> Tensor:
    """Unpack and scale a weight on the CPU: `((codes - zeros) * scales).to(dtype)`, rounded as torch rounds.

    Args:
        packed: (out_features, ceil(in_features * bits / 32)) int32, packed as `numerics.pack.pack` does.
        scales: (out_features, groups), or (1, 1) for one scale per tensor; float32, bfloat16 or float16.
        zeros: like scales but int8, in code units; None for symmetric weights.
        bits: 2, 3, 4 or 8.
        in_features: columns; a multiple of groups.
        dtype: of the result; float32, bfloat16 or float16.
        instructions: one of `supported()`; None for `isa()`.

    Returns:
        (out_features, in_features) of `dtype`.

    Raises:
        LlmquantError: if there is no library, or it does not have `instructions`.
        ValueError: if shapes or dtypes do not fit each other.
    """
    loaded = library()
    if loaded is None:
        raise LlmquantError("the C++ kernels are not installed; install llmquant with a C++17 compiler")
    instructions = instructions or isa()
    if instructions not in ISAS:
        raise LlmquantError(f"instructions are {instructions!r}; they can be {', '.join(ISAS)}")
    rows, words = packed.shape
    groups = scales.shape[1]
    _require(packed, scales, zeros, bits, in_features, dtype)
    packed, scales = packed.contiguous(), scales.contiguous()
    zeros = zeros if zeros is None else zeros.contiguous()
    out = torch.empty(rows, in_features, dtype=dtype)
    if out.numel() == 0:
        return out
    status = loaded.llmquant_unpack_rows(
        packed.data_ptr(),
        scales.data_ptr(),
        None if zeros is None else zeros.data_ptr(),
        out.data_ptr(),
        rows,
        in_features,
        words,
        in_features // groups,
        0 if scales.shape[0] == 1 else groups,
        bits,
        FLOATS[scales.dtype],
        FLOATS[dtype],
        ISAS.index(instructions),
        _parallel_for(),
    )
    if status == 1:
        raise LlmquantError(f"this machine cannot run {instructions}; it has {', '.join(supported())}")
    if status:
        raise LlmquantError(f"the C++ kernel failed with status {status}")
    return out


def _require(
    packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, in_features: int, dtype: torch.dtype
) -> None:
    """Refuse what the library would read or write out of bounds."""
    rows, groups = packed.shape[0], scales.shape[1]
    tensors = [packed, scales] if zeros is None else [packed, scales, zeros]
    fits = (
        bits in (2, 3, 4, 8)
        and packed.dtype == torch.int32
        and packed.shape[1] == -(-in_features * bits // 32)
        and scales.dtype in FLOATS
        and dtype in FLOATS
        and scales.shape[0] in (1, rows)
        and groups > 0
        and in_features % groups == 0
        and (zeros is None or (zeros.dtype == torch.int8 and zeros.shape == scales.shape))
        and all(tensor.device.type == "cpu" for tensor in tensors)
    )
    if not fits:
        described = ", ".join(f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise ValueError(f"cannot unpack {in_features} columns of {bits} bits to {dtype} from {described}")
