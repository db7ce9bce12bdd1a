"""Speed of the CPU kernels, of their peers and of memory, side by side.

    python kernels/bench/cpu.py --quick --json result.json         # 50 s, nothing but torch beside ours
    python kernels/bench/cpu.py --json result.json                 # every shape, scheme, batch; peers if installed
    python kernels/bench/cpu.py --table result.json                # a result as markdown

Peers (onnxruntime with onnx, llama_cpp) take part where they can be imported: run this with the Python that has them,
and put the checkout on PYTHONPATH. docs/benchmarks.md says what the numbers mean.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from llmquant.kernels.bench import machine, oversubscribed, session
from llmquant.kernels.bench.cases import MODES, PEERS, Plan, plan_from
from llmquant.kernels.bench.table import markdown


def run(plan: Plan, beside_busy: bool) -> dict[str, Any]:
    """Measure a plan, each thread count in a process of its own, so that no pool is larger than it should be."""
    result = machine.facts() | {"plan": asdict(plan), "modes": MODES, "stream_gbs": {}, "rows": []}
    for threads in plan.threads:
        speeds, rows = _apart(session.run, replace(plan, threads=(threads,)))
        result["stream_gbs"] |= speeds
        result["rows"] += rows
    if beside_busy:
        result["oversubscribed"] = _apart(oversubscribed.run, plan, max(plan.threads))
    result["machine"]["load_after"] = machine.load()
    return result


def _apart(function: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="speed of the CPU kernels, their peers and memory")
    parser.add_argument("--quick", action="store_true", help="one large shape against torch fp32, in 50 s")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--table", type=Path, help="only print this result as markdown")
    parser.add_argument("--oversubscribed", action="store_true", help="also beside two busy processes")
    parser.add_argument("--sizes", nargs="+", metavar="NxK")
    parser.add_argument("--m", nargs="+", type=int)
    parser.add_argument("--threads", nargs="+", type=int)
    parser.add_argument("--schemes", nargs="+")
    parser.add_argument("--peers", nargs="*", choices=PEERS)
    parser.add_argument("--seconds", type=float, help="for each shape, thread count and M")
    parser.add_argument("--rotate-mb", type=float, help="distinct weights per kernel, to stay out of the cache")
    return parser.parse_args(arguments)


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
    result = run(plan, args.oversubscribed)
    print(markdown(result), end="")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
