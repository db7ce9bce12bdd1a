"""Correctness and speed of the kernels, beside torch's dense product and every peer that is installed.

    python -m llmquant.kernels.bench --device cpu --quick --json result.json     # 50 s, nothing but torch beside ours
    python -m llmquant.kernels.bench --device cpu --json result.json             # every shape and batch, and the peers
    python -m llmquant.kernels.bench --device cuda --json result.json            # on a GPU, in less than 9 minutes
    python -m llmquant.kernels.bench --device dry                                # GPU kernels without a GPU: no times
    python -m llmquant.kernels.bench --table result.json                         # a result as markdown

Run it in the root of the checkout. Cell by cell (a weight and a number of rows) every kernel is checked against
float64, and timed in turn with the others and with reads of memory. The exit code is 1 if one of ours is wrong or
cannot run. Others that fail are reported, and the run goes on; also where a kernel takes the whole process down.

Peers take part where they are installed: on the CPU torch's own, onnxruntime (with onnx) and llama_cpp; on a GPU
torch's own and humming-kernels. Of vLLM, whose Marlin is timed, only `vllm/_C_stable_libtorch.abi3.so` out of its wheel
is needed: --vllm-library PATH.

The file is written after every cell, so that ending the run loses nothing. --budget has seconds for everything; what
does not fit is listed in the result ("left_out"). Nothing about the machine is set. docs/benchmarks.md says what the
numbers mean.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmquant.device import resolve_device
from llmquant.errors import DeviceError
from llmquant.kernels.bench.common.facts import available_cores, facts, load, write_json
from llmquant.kernels.bench.common.plan import CPU, CUDA, DRY, LAYERS, PEERS, Plan, default_plan, shapes_from
from llmquant.kernels.bench.common.table import markdown
from llmquant.kernels.bench.common.watch import Watch


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="correctness and speed of the kernels and their peers")
    parser.add_argument("--device", choices=("auto", CPU, CUDA, DRY), default="auto")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, rows and schemes, and no peers")
    parser.add_argument("--json", type=Path, help="write the result here, again and again")
    parser.add_argument("--table", type=Path, help="only print this result as markdown")
    parser.add_argument(
        "--sizes", nargs="+", metavar="NxK", help=f"weights; {' or '.join(LAYERS)} for those of a Llama"
    )
    parser.add_argument("--m", nargs="+", type=int, help="rows of the input")
    parser.add_argument("--schemes", nargs="+")
    parser.add_argument("--peers", nargs="*", help="whom to compare with; none if empty")
    parser.add_argument("--threads", nargs="+", type=int, help="on the CPU; a process for each number (1 2)")
    parser.add_argument("--seconds", type=float, help="for each weight, thread count and number of rows")
    parser.add_argument("--rotate-mb", type=float, help="on the CPU: weights per kernel, to stay out of the cache")
    parser.add_argument("--budget", type=float, help="seconds for everything")
    parser.add_argument("--vllm-library", metavar="PATH", help="vLLM's _C_stable_libtorch.abi3.so")
    parser.add_argument("--commit", help="what was measured, where git does not know")
    return parser.parse_args(arguments)


def plans_from(args: argparse.Namespace) -> list[Plan]:
    """The runs that the command line asks for: one for each number of threads.

    Raises:
        DeviceError: if there is no GPU.
        ValueError: if a size or a peer is none.
    """
    where = args.device if args.device == DRY else resolve_device(args.device).type
    if where not in PEERS:
        raise ValueError(f"there are no kernels of ours for {where}; give --device cpu")
    if unknown := set(args.peers or ()) - set(PEERS[where]):
        raise ValueError(f"peers on {where} are {', '.join(PEERS[where]) or 'none'}, not {', '.join(sorted(unknown))}")
    changes = {
        "shapes": args.sizes and shapes_from(args.sizes),
        "batches": args.m and tuple(args.m),
        "schemes": args.schemes and tuple(args.schemes),
        "peers": None if args.peers is None else tuple(args.peers),
        "seconds": args.seconds,
        "rotate_bytes": args.rotate_mb and int(args.rotate_mb * 1e6),
        "budget": args.budget,
        "vllm_library": args.vllm_library,
    }
    plan = replace(
        default_plan(where, args.quick), **{name: each for name, each in changes.items() if each is not None}
    )
    threads = args.threads or ([1, 2] if available_cores() > 1 else [1])
    return [replace(plan, threads=count) for count in threads] if where == CPU else [plan]


def run(plans: list[Plan], path: Path | None, commit: str | None = None) -> dict[str, Any]:
    """Measure, each plan in processes of its own."""
    if plans[0].where == DRY:
        # Before anybody imports triton, which decides then what it is.
        os.environ |= {"TRITON_INTERPRET": "1", "LLMQUANT_GPU_KERNELS": "interpret"}
    result: dict[str, Any] = facts("cuda" if plans[0].where == CUDA else "cpu", commit) | {"runs": []}

    def write(found: dict[str, Any]) -> None:
        result["seconds"] = round(sum(each["seconds"] for each in [*result["runs"], found]), 1)
        if path:
            write_json(path, result | {"runs": [*result["runs"], found]})

    for plan in plans:
        result["runs"].append(Watch(plan, write).run())
    result["machine"]["load_after"] = load()
    if path:
        write_json(path, result)
    return result


def main() -> None:
    """Command line."""
    args = parse()
    if args.table:
        print(markdown(json.loads(args.table.read_text(encoding="utf-8"))), end="")
        return
    try:
        plans = plans_from(args)
    except (DeviceError, ValueError) as error:
        sys.exit(f"error: {error}")
    result = run(plans, args.json, args.commit)
    print(markdown(result), end="")
    sys.exit(1 if any(each["failures"] for each in result["runs"]) else 0)


if __name__ == "__main__":
    main()
