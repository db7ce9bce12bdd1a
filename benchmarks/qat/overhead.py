"""What a step of quantization-aware training costs over a plain one, in time and in memory.

    python benchmarks/qat/overhead.py MODEL --text FILE --recipe qat-int4-g32 --json overhead.json

Both are a forward, a backward and a step of the same AdamW over the same tokens, cross entropy, in float32; the plain
one trains what the other does: the linear layers of the blocks, and the norms. Steps are timed in turns in one process;
peak memory is that of a process for each, over two steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import llmquant
from llmquant.data.text import read_text
from llmquant.engine.prepare import load_tokenizer
from llmquant.hf.qat import fake_layers
from llmquant.machine import machine, versions
from llmquant.memory import peak_resident_bytes
from llmquant.recipe.load import load_recipe
from llmquant.recipe.schema import recipe_to_dict

KINDS = ("plain", "qat")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--recipe", default="qat-int4-g32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=KINDS, help="two steps of one kind; prints the peak of memory")
    args = parser.parse_args()
    if args.only:
        step = stepper(args, args.only)
        step()
        step()
        print(json.dumps(peak_resident_bytes()))
        return
    steps = {kind: stepper(args, kind) for kind in KINDS}
    for step in steps.values():
        step()  # the first makes the state of the optimizer
    rounds = [{kind: seconds(step) for kind, step in steps.items()} for _ in range(args.rounds)]
    steps.clear()
    peaks = {kind: peak(kind) for kind in KINDS}
    found = {
        "model": Path(args.model).name, "recipe": args.recipe, "batch": args.batch, "length": args.length,
        "rounds": rounds, "time_ratio": statistics.median(each["qat"] / each["plain"] for each in rounds),
        "peak_bytes": peaks, "memory_ratio": peaks["qat"] / peaks["plain"], "load": os.getloadavg()[0],
        "machine": machine(torch.device("cpu")), "versions": versions(),
    }  # fmt: skip
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def stepper(args: argparse.Namespace, kind: str) -> Any:
    """One step of training, to be called."""
    recipe = recipe_to_dict(load_recipe(args.recipe)) | {"rounding": {"method": "rtn"}}
    recipe.pop("calibration", None)  # where training starts from costs the same
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    names = {row.module.name for row in llmquant.plan(args.model, recipe).quantized}
    if kind == "qat":
        llmquant.prepare_qat(model, recipe)
        assert names == set(fake_layers(model))
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.ndim < 2 or name.removesuffix(".weight") in names)
    model.train()
    tokens = load_tokenizer(args.model)(read_text(args.text)[:40_000], return_tensors="pt").input_ids
    tokens = tokens[0, : args.batch * args.length].view(args.batch, args.length)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)

    def step() -> None:
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Any) -> float:
    """Of one step."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def peak(kind: str) -> int:
    """Bytes, of a process of its own."""
    command = [sys.executable, *sys.argv, "--only", kind]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
