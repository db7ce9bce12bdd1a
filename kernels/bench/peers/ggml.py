"""The few functions of llama.cpp's tensor library that a single matrix product needs, by ctypes."""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

F32 = 0  # enum ggml_type
_GRAPH_NODES = 4  # the product; a graph lists its leaves too


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


_LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "log_set": (None, [c_void_p, c_void_p]),
    "init": (c_void_p, [_InitParams]),
    "free": (None, [c_void_p]),
    "tensor_overhead": (c_size_t, []),
    "graph_overhead_custom": (c_size_t, [c_size_t, c_bool]),
    "row_size": (c_size_t, [c_int, c_int64]),
    "new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "get_data": (c_void_p, [c_void_p]),
    "mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "new_graph_custom": (c_void_p, [c_void_p, c_size_t, c_bool]),
    "build_forward_expand": (None, [c_void_p, c_void_p]),
    "quantize_chunk": (c_size_t, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "backend_tensor_alloc": (c_int, [c_void_p, c_void_p, c_void_p]),
    "backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "backend_buffer_free": (None, [c_void_p]),
    "backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "backend_get_device": (c_void_p, [c_void_p]),
    "backend_dev_backend_reg": (c_void_p, [c_void_p]),
    "backend_dev_supports_op": (c_bool, [c_void_p, c_void_p]),
    "backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "backend_cpu_buffer_type": (c_void_p, []),
    "backend_cpu_init": (c_void_p, []),
    "backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
}


@cache
def ggml() -> Any:
    """The functions without their prefix, and `backend`, a CPU backend."""
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("llama_cpp is not installed")
    # Not by importing llama_cpp: that starts every backend and prints.
    folder = Path(spec.origin).parent / "lib"
    libraries = [ctypes.CDLL(str(folder / f"lib{name}.so"), ctypes.RTLD_GLOBAL) for name in ("ggml-base", "ggml-cpu")]
    functions = SimpleNamespace()
    for name, (result, arguments) in _SIGNATURES.items():
        symbol = f"ggml_{name}"
        function = getattr(next(library for library in libraries if hasattr(library, symbol)), symbol)
        function.restype, function.argtypes = result, arguments
        setattr(functions, name, function)
    functions.silence = _LogCallback(lambda *_: None)  # kept: the library holds its address
    functions.log_set(functions.silence, None)  # it would print a line per repacked weight
    functions.backend = functions.backend_cpu_init()
    return functions


def context(tensors: int, graphs: int = 0) -> int:
    """Room for descriptions of tensors (not their data) and of graphs made by `graph`."""
    overhead = ggml().graph_overhead_custom(_GRAPH_NODES, False) + 64
    return ggml().init(_InitParams((tensors + 1) * ggml().tensor_overhead() + graphs * overhead, None, True))


def graph(where: int, output: int) -> int:
    """The graph that computes one product."""
    made = ggml().new_graph_custom(where, _GRAPH_NODES, False)
    ggml().build_forward_expand(made, output)
    return made


def extra_buffer_types() -> list[int]:
    """Kinds of memory of the CPU that lay weights out anew, best first."""
    functions = ggml()
    device = functions.backend_get_device(functions.backend)
    registry = functions.backend_dev_backend_reg(device)
    address = functions.backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return []
    listed = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(device)
    found: list[int] = []
    while listed and (entry := listed[len(found)]):
        found.append(entry)
    return found
