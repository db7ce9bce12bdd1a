"""Run a plan: make the weights of each shape once, measure every thread count and batch, and write down rows."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from llmquant.kernels.bench import machine, ours, peers_llamacpp, peers_ort, peers_torch
from llmquant.kernels.bench.cases import Plan
from llmquant.kernels.bench.contender import Contender, Shape
from llmquant.kernels.bench.stream import Stream
from llmquant.kernels.bench.timing import Samples, measure

Row = dict[str, Any]

#: What is quoted is the tenth percentile, of kernels and of the memory alike: what other processes disturbed least. The
#: median of the same calls stands beside it.
HEADLINE = 0.1
QUANTILES = {"": HEADLINE, "_median": 0.5}
_MODULES = {"onnxruntime": ("onnxruntime", "onnx"), "llama.cpp": ("llama_cpp",)}


def usable_peers(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Those whose packages are installed."""
    return tuple(peer for peer in wanted if all(find_spec(module) for module in _MODULES.get(peer, ())))


def run(plan: Plan) -> tuple[dict[str, float], list[Row]]:
    """Measure a plan with one thread count.

    Args:
        plan: `plan.threads` has one number; onnxruntime's pool has one size per process.

    Returns:
        {"<threads>": read bandwidth in GB/s} and the rows.

    Raises:
        ValueError: if the plan has several thread counts.
    """
    (threads,) = plan.threads
    rows: list[Row] = []
    speeds: list[float] = []
    stream = Stream(plan.rotate_bytes * 5 // 2)
    with torch.inference_mode(), use_threads(threads):
        for shape in plan.shapes:
            contenders = contenders_of(plan, shape) + _onnxruntime(plan, shape, threads)
            for _, _, batch in replace(plan, shapes=(shape,)).cases():
                print(f"T={threads} {shape} M={batch}: {len(contenders)} kernels", file=sys.stderr, flush=True)
                case = {"m": batch, "n": shape.n, "k": shape.k, "threads": threads, "load": machine.load()}
                read, *times = measure(contenders, stream, batch, threads, plan.seconds)
                speeds.append(stream.gigabytes_per_second(read.quantile(HEADLINE)))
                pairs = zip(contenders, times, strict=True)
                rows += _with_ratios([_row(contender, taken, stream, read, case) for contender, taken in pairs])
    return {str(threads): round(statistics.median(speeds), 2)}, rows


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Set the threads of everything but onnxruntime for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    if usable_peers(("llama.cpp",)):
        peers_llamacpp.set_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def contenders_of(plan: Plan, shape: Shape) -> list[Contender]:
    """torch's fp32, ours, and the peers that run on torch's threads."""
    found = [peers_torch.dense(shape, torch.float32, plan.rotate_bytes)]
    found += ours.contenders(shape, plan.schemes, plan.rotate_bytes)
    if "torch" in plan.peers:
        found.append(peers_torch.dense(shape, torch.bfloat16, plan.rotate_bytes))
        found += peers_torch.weight_only(shape, plan.rotate_bytes)
    if "llama.cpp" in usable_peers(plan.peers):
        found += peers_llamacpp.contenders(shape, plan.rotate_bytes)
    return found


def _onnxruntime(plan: Plan, shape: Shape, threads: int) -> list[Contender]:
    if "onnxruntime" not in usable_peers(plan.peers):
        return []
    return peers_ort.contenders(shape, threads, plan.rotate_bytes)


def _row(contender: Contender, taken: Samples, stream: Stream, read: Samples, case: dict[str, Any]) -> Row:
    row = {
        "kernel": contender.kernel, "scheme": contender.scheme, "mode": contender.mode, **case,
        "calls": len(taken.times), "us_q90": round(taken.quantile(0.9), 2),
        "weight_bytes": contender.weight_bytes, "bits": round(contender.weight_bytes * 8 / case["n"] / case["k"], 3),
        "error": contender.error(case["m"]) if contender.error else None,
    }  # fmt: skip
    for suffix, quantile in QUANTILES.items():
        time, speed = taken.quantile(quantile), stream.gigabytes_per_second(read.quantile(quantile))
        row[f"us{suffix}"] = round(time, 2)
        row[f"stream_gbs{suffix}"] = round(speed, 2)
        row[f"stream_share{suffix}"] = round(contender.weight_bytes / time / 1e3 / speed, 4)
    return row


def _with_ratios(rows: list[Row]) -> list[Row]:
    """Add how many times faster than torch's fp32 of the same case."""
    dense = next(row for row in rows if row["kernel"] == "torch" and row["scheme"] == "fp32")
    for row in rows:
        for suffix in QUANTILES:
            row[f"ratio_fp32{suffix}"] = round(dense[f"us{suffix}"] / row[f"us{suffix}"], 3)
    return rows
