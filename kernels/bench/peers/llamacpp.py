"""llama.cpp's kernels as contenders, through the ggml libraries that lie in the llama_cpp package.

A weight lies where llama.cpp would put it: in the first of the CPU's extra buffer types (repacked weights) that takes
it, else in a plain buffer. One call computes a graph of one product. ggml asks for an OpenMP library by a name under
which torch's is loaded already, so both use one pool.
"""

from __future__ import annotations

from functools import partial

import torch

from llmquant.kernels.bench.common.contender import Call, Contender
from llmquant.kernels.bench.common.weights import Shape, copies
from llmquant.kernels.bench.peers.ggml import F32, context, extra_buffer_types, ggml, graph

#: enum ggml_type, and the inputs that share a block.
_TYPES = {"Q4_0": (2, 32), "Q4_K": (12, 256), "Q8_0": (8, 32)}


def set_threads(threads: int) -> None:
    """Threads of every later call."""
    ggml().backend_cpu_set_n_threads(ggml().backend, threads)


def contenders(shape: Shape, rotate_bytes: int) -> list[Contender]:
    """Q4_0, Q4_K and Q8_0, where their blocks divide the inputs."""
    return [_contender(shape, name, rotate_bytes) for name, (_, block) in _TYPES.items() if shape.k % block == 0]


def _contender(shape: Shape, name: str, rotate_bytes: int) -> Contender:
    kind = _TYPES[name][0]
    size = ggml().row_size(kind, shape.k) * shape.n
    buffer_type, layout = _buffer_type(shape, kind)
    weights = _Weights(shape, kind, size, copies(rotate_bytes, size), buffer_type)
    return Contender("llama.cpp", f"{name}{layout}", "int8", size, weights.bind)


def _buffer_type(shape: Shape, kind: int) -> tuple[int, str]:
    """Where llama.cpp would put such a weight, and what to add to the format's name."""
    device = ggml().backend_get_device(ggml().backend)
    for candidate in extra_buffer_types():
        where = context(4)
        weight = ggml().new_tensor_2d(where, kind, shape.k, shape.n)
        buffer = ggml().backend_alloc_ctx_tensors_from_buft(where, candidate)
        product = ggml().mul_mat(where, weight, ggml().new_tensor_2d(where, F32, shape.k, 1))
        taken = ggml().backend_dev_supports_op(device, product)
        ggml().backend_buffer_free(buffer)
        ggml().free(where)
        if taken:
            return candidate, "-repacked"
    return ggml().backend_cpu_buffer_type(), ""


class _Weights:
    """Copies of a quantized weight, and what is bound to them, in memory of ggml's; freed with this object."""

    def __init__(self, shape: Shape, kind: int, size: int, count: int, buffer_type: int) -> None:
        self._shape = shape
        self._where = context(count)
        self._tensors = [ggml().new_tensor_2d(self._where, kind, shape.k, shape.n) for _ in range(count)]
        self._buffer = ggml().backend_alloc_ctx_tensors_from_buft(self._where, buffer_type)
        self._bound: list[tuple[int, int | None]] = []
        values, codes = torch.randn(shape.n, shape.k), torch.empty(shape.n, size // shape.n, dtype=torch.uint8)
        ggml().quantize_chunk(kind, values.data_ptr(), codes.data_ptr(), 0, shape.n, shape.k, None)
        for number, tensor in enumerate(self._tensors):
            # Rows in another order: each copy differs, without the time of quantizing it.
            turned = codes.roll(number, 0)
            ggml().backend_tensor_set(tensor, turned.data_ptr(), 0, size)

    def bind(self, rows: int) -> list[Call]:
        """One graph per copy, all with the same input and the same memory for the output; ends what was bound."""
        self._release()
        count = len(self._tensors)
        data, graphs = context(2), context(count, count)
        x, y = (ggml().new_tensor_2d(data, F32, length, rows) for length in (self._shape.k, self._shape.n))
        buffer = ggml().backend_alloc_ctx_tensors_from_buft(data, ggml().backend_cpu_buffer_type())
        self._bound = [(data, buffer), (graphs, None)]
        values = torch.randn(rows, self._shape.k)
        ggml().backend_tensor_set(x, values.data_ptr(), 0, values.nbytes)
        calls = []
        for tensor in self._tensors:
            product = ggml().mul_mat(graphs, tensor, x)
            ggml().backend_tensor_alloc(buffer, product, ggml().get_data(y))
            calls.append(partial(ggml().backend_graph_compute, ggml().backend, graph(graphs, product)))
        return calls

    def _release(self) -> None:
        for where, buffer in self._bound:
            if buffer:
                ggml().backend_buffer_free(buffer)
            ggml().free(where)
        self._bound = []

    def __del__(self) -> None:
        self._release()
        ggml().backend_buffer_free(self._buffer)
        ggml().free(self._where)
