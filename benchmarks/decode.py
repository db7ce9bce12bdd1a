"""Decode and prefill of a Llama with random weights: dense, int4 and int8, as `llmquant bench` times a real model.

    python benchmarks/decode.py --random 8b --device cuda --json decode_gpu.json           # in less than 9 minutes
    python benchmarks/decode.py --random small --device cpu --threads 2 --head int4-g128 --llama-python PYTHON
    python benchmarks/decode.py --dry-run

Nothing is downloaded. First every packed model is checked against a float32 yardstick; then all take turns, for each
number of sequences with the first prompt, and for each longer prompt with one sequence. On a CUDA device each decodes
with a growing cache, and by a CUDA graph. llama.cpp (--llama-python: a Python with llama-cpp-python and gguf) takes
part with Q4_0 weights of the same shape, in a process of its own.

The file is written after each section; what fails is written down, and the others go on; the exit code is 1 then.
--dry-run needs no GPU: a tiny model on the CPU, the GPU kernels in Triton's interpreter, whose times say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

if TYPE_CHECKING:
    from llmquant.eval.speed.bench import Contender

#: What a dry run replaces. bfloat16 is wrong in the interpreter.
DRY = {
    "random": "tiny", "device": "cpu", "models": ["fp16", "int4-g128"], "dtype": "fp16", "batches": [2],
    "prompts": [5], "new": 1, "seconds": 0.0,
}  # fmt: skip
#: Of a CUDA device and of others: models, and the dtype in which quantized ones compute.
_MODELS = {True: (["bf16", "int4-g128", "int8"], "bf16"), False: (["fp32", "bf16", "int8", "int4-g128"], "fp32")}
PEER = "llama.cpp Q4_0"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="decode and prefill of a random Llama, dense and quantized")
    parser.add_argument("--random", choices=("8b", "1b", "small", "tiny"), default="8b", help="shape of the model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--models", nargs="+", help="fp32, bf16, fp16 or a scheme; the first is compared with")
    parser.add_argument("--head", default="keep", help="scheme of the quantized models' head (keep)")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="of the quantized models' activations")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--batches", nargs="+", type=int, help="sequences at once (1 8 32; on a CPU 1)")
    parser.add_argument("--prompts", nargs="+", type=int, default=[128, 512], help="tokens of the prompts")
    parser.add_argument("--new", type=int, default=32, help="tokens decoded one by one")
    parser.add_argument("--seconds", type=float, default=20, help="for each section")
    parser.add_argument("--budget", type=float, default=500, help="no section starts after so many seconds")
    parser.add_argument("--llama-python", help="a Python that has llama-cpp-python and gguf")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="what is measured, where git does not know")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(arguments)
    if args.dry_run:
        vars(args).update(DRY)
    return args


class Run:
    """What was measured so far, on disk as far as it goes; `budget` has the seconds for everything."""

    def __init__(self, result: dict[str, Any], path: Path | None, budget: float) -> None:
        self.result = result | {"checks": [], "reports": [], "failures": [], "skipped": []}
        self._path, self._end = path, time.monotonic() + budget

    def section(self, name: str, key: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Add what `measure` finds to `result[key]`; an exception costs this section only."""
        from llmquant.kernels.bench.common.facts import write_json

        left = self._end - time.monotonic()
        print(f"{name} ({left:.0f} s left)", file=sys.stderr, flush=True)
        if left < 0:
            self.result["skipped"].append(name)
            return
        try:
            self.result[key].append({"section": name} | measure())
        except Exception as error:  # noqa: BLE001 - what follows is still worth its time
            self.result["failures"].append(f"{name}: {type(error).__name__}: {error}")
        if self._path:
            write_json(self._path, self.result)


@torch.no_grad()
def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what the command line asks for."""
    from random_llama import SHAPES, build

    from llmquant.bench import DTYPES
    from llmquant.device import resolve_device
    from llmquant.eval.speed.bench import bench, contenders_of
    from llmquant.eval.speed.table import speed_table
    from llmquant.eval.speed.throughput import ThroughputOptions
    from llmquant.kernels.bench.common.facts import facts
    from llmquant.spec import Scheme

    device = resolve_device(args.device)
    on_gpu = device.type == "cuda"
    torch.set_num_threads(args.threads or torch.get_num_threads())
    names, dtype = _MODELS[on_gpu]
    models, dtype = args.models or names, DTYPES[args.dtype or dtype]
    console = Console(width=None if sys.stdout.isatty() else 160)
    found = Run(facts(str(device), args.commit) | {"plan": plain(args)}, args.json, args.budget)
    contenders: list[Contender] = []
    for name in models:
        dense = DTYPES.get(name)
        body, head = (Scheme.parse("keep" if dense else word) for word in (name, args.head))

        def add(name: str = name, dense: Any = dense, body: Scheme = body, head: Scheme = head) -> dict[str, Any]:
            model = build(SHAPES[args.random], body, head, dense or dtype, device)
            new = contenders_of(name, model, ("exact", "fast"))
            contenders.extend(new)
            return {"ok": True} if dense else checked(new, args.prompts[0])

        found.section(f"build and check {name}", "checks", add)
    wrong = {row["section"] for row in found.result["checks"] if not row["ok"]}
    found.result["failures"] += [f"{name}: the logits are wrong" for name in sorted(wrong)]
    contenders = [each for each in contenders if f"build and check {each.name}" not in wrong]
    if on_gpu or args.dry_run:
        contenders += [replace(each, static=True) for each in contenders]
    first, *longer = args.prompts
    batches = args.batches or ([1, 8, 32] if on_gpu else [1])
    with ExitStack() as stack:
        peers = [llama(stack, args, SHAPES[args.random], found.result)] if args.llama_python else []
        for batch, prompt in [*((batch, first) for batch in batches), *((1, prompt) for prompt in longer)]:
            options = ThroughputOptions(
                contexts=[prompt], batches=[batch], decode_tokens=args.new, seconds=args.seconds,
                min_rounds=1 if args.dry_run else 3, warmup=int(not args.dry_run),
            )  # fmt: skip

            def measure(options: ThroughputOptions = options) -> dict[str, Any]:
                taking_part = [each(args.new) for each in peers if options.batches == [1]]
                report = bench(contenders, options, peers=taking_part)
                console.print(speed_table(report))
                return asdict(report)

            found.section(f"batch {batch}, prompt {prompt}", "reports", measure)
    return found.result


def checked(contenders: list[Contender], tokens: int) -> dict[str, Any]:
    """Whether the logits of a prompt are right, in each accuracy of a packed model."""
    from yardstick import check_logits

    from llmquant.eval.precision import in_accuracy

    row: dict[str, Any] = {"ok": True}
    for each in contenders:
        accuracy, ids = each.accuracy or "exact", torch.arange(tokens, device=each.model.device)[None] * 7
        with in_accuracy(each.model, accuracy):
            row[accuracy] = check_logits(each.model, ids, accuracy == "exact")
        row["ok"] &= row[accuracy]["ok"]
    return row


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """The command line for the file, without paths."""
    kept = {name: value for name, value in vars(args).items() if name not in ("json", "commit", "llama_python")}
    return kept | {"llama_cpp": bool(args.llama_python)}


def llama(stack: ExitStack, args: argparse.Namespace, shape: dict[str, Any], result: dict[str, Any]) -> Any:
    """Start llama.cpp in its own process; gives a peer for a number of new tokens, with one sequence."""
    from llmquant.eval.speed.bench import Peer
    from llmquant.eval.speed.throughput import Cell, Timing

    script = Path(__file__).with_name("llama_cpp_decode.py")
    task = json.dumps({"shape": shape, "threads": torch.get_num_threads()})
    process = stack.enter_context(
        subprocess.Popen(
            [args.llama_python, str(script), task], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    )
    assert process.stdin
    assert process.stdout
    requests, answers = process.stdin, process.stdout
    stack.callback(requests.close)
    started = json.loads(answers.readline())
    result["versions"]["llama-cpp-python"] = started["version"]

    def peer(steps: int) -> Peer:
        def turn(cell: Cell) -> Timing:
            time.sleep(0.2)  # our threads go to sleep first
            print(json.dumps({"prompt": cell.context, "steps": steps}), file=requests, flush=True)
            answer = json.loads(answers.readline())
            return Timing(cell.context / answer["prefill_s"], steps / sum(answer["step_s"]))

        return Peer(PEER, started["bytes"], turn)

    return peer


def main() -> None:
    """Command line."""
    args = parse()
    if args.dry_run:
        # Read when triton is imported, which torch may do.
        os.environ |= {"TRITON_INTERPRET": "1", "LLMQUANT_GPU_KERNELS": "interpret"}
        print("dry run: the times are those of Triton's interpreter")
    result = run(args)
    for line in [f"skipped: {name}" for name in result["skipped"]] + [f"FAILED: {why}" for why in result["failures"]]:
        print(line)
    sys.exit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
