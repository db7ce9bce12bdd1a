"""onnxruntime's MatMulNBits as contender: 4 bits, accuracy level 4 (int8 activations), blocks of 32 and 128.

Each copy of the weight is a session of its own with one node, so that one call is one product, as for everybody else.
One thread is the caller's own; more are the process's one pool, since a pool per session would have the threads of one
session spin while the next one works. The pool's size is set once, so a process measures one thread count only.
"""

from __future__ import annotations

from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np

from llmquant.kernels.bench.common.contender import ONNXRUNTIME, Call, Contender
from llmquant.kernels.bench.common.weights import Shape, copies

_BLOCKS = (32, 128)


@cache
def _start(threads: int) -> None:
    onnxruntime = import_module("onnxruntime")
    onnxruntime.set_default_logger_severity(3)  # a warning per session that the pool is the process's
    if threads > 1:
        onnxruntime.set_global_thread_pool_sizes(threads, 1)


def contenders(shape: Shape, threads: int, rotate_bytes: int) -> list[Contender]:
    """MatMulNBits with each block size that divides the inputs."""
    _start(threads)
    return [_contender(shape, block, threads, rotate_bytes) for block in _BLOCKS if shape.k % block == 0]


def _contender(shape: Shape, block: int, threads: int, rotate_bytes: int) -> Contender:
    size = shape.n * shape.k // 2 + shape.n * (shape.k // block) * 4
    # onnxruntime merges initializers with equal values, so each copy has its own.
    sessions = [_session(shape, block, threads, seed) for seed in range(copies(rotate_bytes, size))]
    bind = partial(_bind, sessions, shape)
    return Contender("onnxruntime", f"int4-b{block}", "int8", size, bind, pool=ONNXRUNTIME)


def _session(shape: Shape, block: int, threads: int, seed: int) -> Any:
    onnxruntime, onnx = import_module("onnxruntime"), import_module("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    random = np.random.default_rng(seed)
    blocks = shape.k // block
    codes = random.integers(0, 256, (shape.n, blocks, block // 2), dtype=np.uint8)
    scales = random.random(shape.n * blocks, dtype=np.float32) * 0.01
    weights = [
        helper.make_tensor("codes", types.UINT8, codes.shape, codes.tobytes(), raw=True),
        helper.make_tensor("scales", types.FLOAT, scales.shape, scales.tobytes(), raw=True),
    ]
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"],
        domain="com.microsoft", K=shape.k, N=shape.n, bits=4, block_size=block, accuracy_level=4,
    )  # fmt: skip
    x = helper.make_tensor_value_info("x", types.FLOAT, ["m", shape.k])
    y = helper.make_tensor_value_info("y", types.FLOAT, ["m", shape.n])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "matmul", [x], [y], initializer=weights)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads
    options.use_per_session_threads = threads == 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _bind(sessions: list[Any], shape: Shape, rows: int) -> list[Call]:
    onnxruntime = import_module("onnxruntime")
    x = np.random.default_rng(0).standard_normal((rows, shape.k), dtype=np.float32)
    source = onnxruntime.OrtValue.ortvalue_from_numpy(x)
    target = onnxruntime.OrtValue.ortvalue_from_numpy(np.empty((rows, shape.n), dtype=np.float32))
    calls = []
    for session in sessions:
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", source)
        binding.bind_ortvalue_output("y", target)
        calls.append(partial(session.run_with_iobinding, binding))
    return calls
