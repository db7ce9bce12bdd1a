"""Decode and prefill of an 8B-shaped Llama on a GPU, in plain transformers: 16-bit against int4 and int8.

    python benchmarks/decode_gpu.py --json benchmarks/results/decode_gpu.json
    python benchmarks/decode_gpu.py --dry-run

Weights are random, so nothing is downloaded: Llama-3.1-8B's shape, drawn and quantized on the device. First come checks
(logits against a float32 yardstick, tokens of a CUDA graph against those without); then decoding with a dynamic cache
and with a static cache in a CUDA graph, prompts, and where the time goes (CUPTI); last torch.compile, which takes a
minute or more per model. Contenders take turns in rounds. The file is written after each section; the exit status is 1
if anything failed.

A run is meant to fit into nine minutes (--seconds). --dry-run needs no GPU: a tiny model through Triton's interpreter,
on the CPU, in less than a minute. It does all that a GPU would do but capture, profile and compile, and times nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

#: What a dry run replaces. bfloat16 is wrong in the interpreter.
DRY = {
    "shape": "tiny", "dtype": "float16", "batches": [3], "prefill": [17], "context": 5, "steps": 2, "rounds": 1,
}  # fmt: skip
SECTIONS = ("checks", "decode", "prefill", "profile", "compiled")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="decode and prefill of a Llama on a GPU, dense and quantized")
    parser.add_argument("--shape", choices=("8b", "1b", "tiny"), default="8b")
    parser.add_argument(
        "--models", nargs="+", default=["dense", "int4-g128", "int8"],
        help="schemes; int4-g128/int8 has an int8 head, which else stays in 16 bits; dense first, for the ratios",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help="sequences that are decoded at once")
    parser.add_argument("--prefill", nargs="+", type=int, default=[512, 2048], help="tokens of the prompts")
    parser.add_argument("--context", type=int, default=128, help="tokens before the first one that is decoded")
    parser.add_argument("--steps", type=int, default=64, help="tokens decoded in a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=500, help="no section and no round starts after these")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="what is measured, where git does not know")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU, by Triton's interpreter; no times")
    args = parser.parse_args(arguments)
    if args.dry_run:
        vars(args).update(DRY)
    return args


def main() -> None:
    """Command line."""
    args = parse()
    if args.dry_run:
        # Read when triton is imported, which torch may do.
        os.environ |= {"TRITON_INTERPRET": "1", "LLMQUANT_GPU_KERNELS": "interpret"}
    import gpu_session

    sys.exit(gpu_session.run(args))


if __name__ == "__main__":
    main()
