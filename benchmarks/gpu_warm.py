"""Kernels compiled ahead for decode_gpu.py, in as many processes as there are cores.

Triton compiles a kernel when it is first launched, for a second or more, and a run needs about a hundred. So other
processes launch them while the models are built, in models of one layer, and leave them in Triton's cache on disk. What
is compiled depends on the number of rows, through dispatch.py, but not on which sequences they belong to.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from gpu_models import SHAPES, Kind, build

from llmquant.kernels.bench.gpu_compile import Compiling, Job
from llmquant.nn.accuracy import Accuracy, set_accuracy

_KEY = "ahead"
_SHARE = 0.3  # of the time; whatever is not compiled by then is compiled when it is needed


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    """What the command line needs: every model, accuracy and number of rows, those of decoding first."""
    contexts = [batch * args.context for batch in args.batches]
    for rows in dict.fromkeys([*args.batches, args.context, *contexts, *args.prefill]):
        for name in args.models:
            kind = Kind.parse(name)
            for accuracy in kind.accuracies:
                if accuracy is not None:
                    yield Job(_KEY, launch_all, (name, accuracy, rows, args.shape, args.dtype))


def launch_all(name: str, accuracy: Accuracy, rows: int, shape: str, dtype: str, device: str = "cuda") -> None:
    """Launch what a model launches for so many rows.

    Args:
        name: of the model.
        accuracy: of its layers.
        rows: tokens of all sequences together.
        shape: of the model.
        dtype: of the model.
        device: where.
    """
    kind, small = Kind.parse(name), {"num_hidden_layers": 1}
    if kind.head.is_keep:
        small["vocab_size"] = 128
    with torch.no_grad():
        model = build(kind, SHAPES[shape] | small, getattr(torch, dtype), torch.device(device))
        set_accuracy(model, accuracy)
        model(torch.zeros(rows, 1, dtype=torch.int64, device=device), use_cache=False)
        if device == "cuda":
            torch.cuda.synchronize()


def begin(args: argparse.Namespace) -> Compiling:
    """Begin to compile what the command line needs."""
    return Compiling(jobs(args))


def finish(compiling: Compiling, seconds: float) -> list[dict[str, float | bool]]:
    """Wait, and end the processes, so that nothing is timed beside them.

    Args:
        compiling: of `begin`.
        seconds: of the whole run.

    Returns:
        seconds waited, and whether everything was compiled.
    """
    start = time.time()
    try:
        missing = compiling.wait([_KEY], start + _SHARE * seconds, lambda text: None)  # noqa: ARG005
    finally:
        compiling.close()
    return [{"waited_s": round(time.time() - start, 1), "all": not missing}]
