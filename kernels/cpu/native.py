"""The C++ kernels of kernels/cpu: a shared library with a plain C interface, found beside this file, loaded by ctypes.

The library is built without torch, so one build serves every torch and Python. It holds one variant of each kernel per
instruction set; the widest that this machine can run is used, or the one that `LLMQUANT_CPU_ISA` names (scalar, avx2,
avx512, avx512vnni; neon on ARM). All variants give the same bits, so the choice changes the speed only.
`LLMQUANT_CPU_KERNELS=reference` turns the fast kernels off.

Work is split over torch's own threads: `torch_parallel_for` of torch's stable C interface is looked up in the loaded
libtorch_cpu and handed to the library. Where it cannot be found (other than Linux) the library runs on one thread.

An installation without a compiler has no library. `library` says so once, loudly, and callers use the torch reference.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import sys
import threading
import time
import weakref
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmquant.errors import LlmquantError, OutOfMemoryError

_log = logging.getLogger(__name__)

ABI = 5  # LLMQUANT_ABI in cpu/src/api.cpp
ISAS = ("scalar", "avx2", "avx512", "avx512vnni", "neon")  # Isa in cpu/src/isa.h
FLOATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # Float in cpu/src/types.h
ISA_VARIABLE = "LLMQUANT_CPU_ISA"
KERNELS_VARIABLE = "LLMQUANT_CPU_KERNELS"
_PAGE = 2 << 20
_PIECE = 32 << 20  # of the memory that weights share
_SUFFIXES = (".so", ".dylib", ".dll")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, or None where llmquant was installed without it; says so in the log, once."""
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
    signatures = {
        "use_threads": (None, [pointer] * 2),
        "unpack_rows": (number, [pointer] * 4 + [size] * 5 + [number] * 4),
        "weight_bytes": (size, [size] * 2 + [number] * 4),
        "pack_weight": (number, [pointer] * 4 + [size] * 3 + [number] * 4),
        "unpack_weight": (number, [pointer] * 4),
        "unpack_selected": (number, [pointer] * 2 + [size] + [pointer] * 3),
        "linear": (number, [pointer]),
        "linear_one": (number, [pointer] * 4 + [size] * 3 + [number] * 4 + [ctypes.c_float]),
        "round_block": (number, [pointer]),
        "advise_huge": (None, [pointer, size]),
        "stream_read": (ctypes.c_uint64, [pointer, size]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(loaded, f"llmquant_{name}")
        function.restype, function.argtypes = result, arguments
    loaded.llmquant_use_threads(*torch_functions())
    return loaded


def torch_functions() -> tuple[int | None, int | None]:
    """Addresses of what the library starts threads with: torch's own, or None where they cannot be found."""
    return _torch_function("torch_parallel_for"), _torch_function("torch_get_num_threads")


def _torch_function(name: str) -> int | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        torch_cpu = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:  # a statically linked torch
        return None
    return ctypes.cast(getattr(torch_cpu, name), ctypes.c_void_p).value


def supported() -> tuple[str, ...]:
    """The instruction sets that both the library and this machine have; empty without the library."""
    loaded = library()
    if loaded is None:
        return ()
    return tuple(name for number, name in enumerate(ISAS) if loaded.llmquant_isa_supported(number))


@cache
def isa() -> str:
    """The instruction set in use: the widest, or what LLMQUANT_CPU_ISA says; "torch" without the library."""
    wanted = os.environ.get(ISA_VARIABLE, "")
    if wanted and wanted not in ISAS:
        raise LlmquantError(f"{ISA_VARIABLE} is {wanted!r}; it can be {', '.join(ISAS)}, or unset for the best")
    usable = supported()
    if wanted and wanted not in usable:
        there = f"this machine runs {', '.join(usable)}" if usable else "llmquant was installed without C++ kernels"
        raise LlmquantError(f"{ISA_VARIABLE} asks for {wanted}, but {there}; unset it or choose another")
    return wanted or (usable[-1] if usable else "torch")


@cache
def wanted() -> bool:
    """Whether the fast kernels may be used: the library is there and LLMQUANT_CPU_KERNELS does not say "reference"."""
    value = os.environ.get(KERNELS_VARIABLE, "")
    if value not in ("", "reference"):
        raise LlmquantError(f"{KERNELS_VARIABLE} is {value!r}; it can be reference, or unset for the fast kernels")
    return not value and library() is not None


def stream_read_gbs(threads: int, seconds: float = 0.4, size: int = 256 << 20) -> float:
    """Measured bandwidth of reading memory in order, the best of several reads, in 10^9 bytes per second.

    `size` bytes, larger than all caches, are read by `threads` torch threads for at least so many `seconds`.
    """
    loaded = require()
    buffer = map_huge(size).fill_(1)
    before = torch.get_num_threads()
    best, end = float("inf"), time.perf_counter() + seconds
    try:
        torch.set_num_threads(threads)
        while time.perf_counter() < end:
            start = time.perf_counter()
            loaded.llmquant_stream_read(buffer.data_ptr(), size)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return size / best / 1e9


class _Arena:
    """Memory in 2 MB pages for many weights: alone, most would leave their last page, or all of them, to 4 KB ones.

    A piece of the arena lives as long as any weight in it, and no longer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._piece: Any = lambda: None
        self._used = 0

    def take(self, size: int) -> Tensor:
        if size > _PIECE // 2:
            return map_huge(size)
        with self._lock:
            piece = self._piece()
            if piece is None or self._used + size > _PIECE:
                piece, self._used = map_huge(_PIECE), 0
                self._piece = weakref.ref(piece)  # each view holds the tensor that it is a view of
            begin = self._used
            self._used = -(-(begin + size) // 64) * 64
            return piece[begin : begin + size]


_arena = _Arena()


def huge_pages(size: int) -> Tensor:
    """Bytes for a weight, in 2 MB pages where the system has them; aligned to 64."""
    return _arena.take(size)


def map_huge(size: int) -> Tensor:
    """Bytes of their own mapping that begin at a 2 MB page and are asked to lie in such pages to the end."""
    whole = -(-size // _PAGE) * _PAGE
    # Fresh from the system: memory that malloc has used before is in small pages, and stays so. Private: shared memory,
    # Python's default, follows another setting of the system, which is mostly off.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        mapped = mmap.mmap(-1, whole + _PAGE, **private)
    except OSError as error:
        raise OutOfMemoryError(f"no memory for {size:,} bytes of weights: {error.strerror}; free some") from error
    memory = torch.frombuffer(mapped, dtype=torch.uint8)
    begin = -memory.data_ptr() % _PAGE
    require().llmquant_advise_huge(memory.data_ptr() + begin, whole)
    return memory[begin : begin + size].detach()


def require() -> ctypes.CDLL:
    """The library, or an error where it is not installed."""
    loaded = library()
    if loaded is None:
        raise LlmquantError("the C++ kernels are not installed; install llmquant with a C++17 compiler")
    return loaded


def check(status: int, instructions: str) -> None:
    """Turn a status of the library that is not 0 into an error."""
    if status == 1:
        raise LlmquantError(f"this machine cannot run {instructions}; it has {', '.join(supported())}")
    if status == 3:
        raise LlmquantError("x does not have the inputs of the prepared weight, or weights that cannot run in one call")
    if status == 4:
        raise OutOfMemoryError("the C++ kernels got no memory for their inputs; free some, or use fewer rows in a call")
    if status:
        raise LlmquantError(f"the C++ kernel failed with status {status}")


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

    The tensors are those of `UnpackRows` (kernels/ops/dequantize.py), their dtypes and `dtype` those of `FLOATS`;
    `instructions` are one of `supported()`, or None for `isa()`.

    Raises:
        LlmquantError: if there is no library, or it does not have `instructions`.
        ValueError: if shapes or dtypes do not fit each other.
    """
    loaded = require()
    instructions = instructions or isa()
    if instructions not in ISAS:
        raise LlmquantError(f"instructions are {instructions!r}; they can be {', '.join(ISAS)}")
    rows, words = packed.shape
    groups = scales.shape[1]
    _require(packed, scales, zeros, bits, in_features, dtype)
    packed, scales = packed.contiguous(), scales.contiguous()
    zeros = zeros if zeros is None else zeros.contiguous()
    out = torch.empty(rows, in_features, dtype=dtype, device="cpu")
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
    )
    check(status, instructions)
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
