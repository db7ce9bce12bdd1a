"""Correctness and speed of the GPU kernels, beside cuBLAS and every peer that is installed.

    python kernels/bench/gpu.py --json result.json                     # everything, in less than 9 minutes
    python kernels/bench/gpu.py --dry-run --json dry.json              # without a GPU: small cases, nothing timed
    python kernels/bench/gpu.py --table result.json                    # a result as markdown
    python kernels/bench/gpu.py --shapes 70B --m 1 16 --formats W4A16-g128 --configs 6 --pdl   # data for tuning

First a sweep of correctness over small weights, then cell by cell (a layer and a number of rows) every kernel: checked
against float64, and timed in turn with the others. Exit code 1 if one of ours is wrong, or cannot run, and is not timed
then; also if it is right but less precise than promised. Others that fail are reported, and the run goes on; also where
a kernel takes the whole process down.

Peers take part where they are installed: torch's own, humming-kernels, gemlite, bitsandbytes. Of vLLM only the library
`vllm/_C_stable_libtorch.abi3.so` out of its wheel is needed: --vllm-library PATH. Put the checkout on PYTHONPATH.

The file is written after every cell, so that ending the run loses nothing. --budget has seconds for everything; what
does not fit is listed in the result ("left_out"). Nothing about the GPU is set, its clocks neither; they are noted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from llmquant.kernels.bench import machine
from llmquant.kernels.bench.gpu_cases import BATCHES, FORMATS, LAYERS, PEERS, SWEEPS, Plan, plan_from
from llmquant.kernels.bench.gpu_facts import PACKAGES
from llmquant.kernels.bench.gpu_table import markdown, short
from llmquant.kernels.bench.gpu_watch import Watch

_WORKER = [sys.executable, "-m", "llmquant.kernels.bench.gpu_worker"]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="correctness and speed of the GPU kernels and their peers")
    parser.add_argument("--json", type=Path, help="write the result here, again and again")
    parser.add_argument("--markdown", type=Path, help="write all tables here at the end")
    parser.add_argument("--table", type=Path, help="only print this result as markdown")
    parser.add_argument("--dry-run", action="store_true", help="no GPU: Triton's interpreter on tiny cases, no times")
    parser.add_argument("--budget", type=float, default=500, help="seconds for everything (500)")
    parser.add_argument("--shapes", nargs="+", metavar="LAYER", help=f"8B, 70B, NxK, or of {', '.join(LAYERS)}")
    parser.add_argument("--m", nargs="+", type=int, help=f"rows; default {BATCHES[0]} to {BATCHES[-1]}")
    parser.add_argument("--formats", nargs="+", metavar="FORMAT", help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="whom to compare with; none if empty")
    parser.add_argument("--vllm-library", metavar="PATH", help="vLLM's _C_stable_libtorch.abi3.so")
    parser.add_argument("--tune-peers", action="store_true", help="let peers look for configurations: minutes")
    parser.add_argument("--sweep", choices=SWEEPS, default="quick", help="size of the check of correctness")
    parser.add_argument("--configs", type=int, default=0, metavar="COUNT", help="time so many other configurations too")
    parser.add_argument("--pdl", action="store_true", help="also time programmatic dependent launch, or none")
    parser.add_argument("--no-cold", dest="cold", action="store_false", help="no single calls after a flush")
    parser.add_argument("--no-eager", dest="eager", action="store_false", help="no host time per call")
    parser.add_argument("--commit", help="what was measured, where git does not know")
    return parser.parse_args(arguments)


def run(plan: Plan, path: Path | None, commit: str | None) -> dict:
    """Measure a plan in processes of their own."""
    if plan.dry:
        # Before anybody imports triton, which decides then what it is.
        os.environ |= {"TRITON_INTERPRET": "1", "LLMQUANT_GPU_KERNELS": "interpret"}
    facts = machine.facts(PACKAGES) | {"plan": plan.plain(), "dry_run": plan.dry, "gpu": None, "clocks": []}
    return Watch(plan, facts | ({"commit": commit} if commit else {}), path, _WORKER).run()


def main() -> None:
    """Command line."""
    args = parse()
    if args.table:
        print(markdown(json.loads(args.table.read_text(encoding="utf-8"))), end="")
        return
    try:
        plan = plan_from(args)
    except ValueError as error:
        sys.exit(str(error))
    result = run(plan, args.json, args.commit)
    print(short(result), end="")
    if args.markdown:
        args.markdown.write_text(markdown(result), encoding="utf-8")
    sys.exit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
