"""Time and peak memory of streaming quantization on a random-weight 1B Llama, and of planning a 70B model.

    python benchmarks/streaming_memory.py --json benchmarks/results/streaming_memory.json

Each measurement runs in its own process. Peak memory is VmHWM over that of an interpreter that only imported llmquant's
engine. The weights are random (scaled as at initialization), in bf16, in shards of 500 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SAMPLES, LENGTH = 64, 512
# The shape of Llama 3.2 1B; the vocabulary too, since embeddings are what small models consist of.
CONFIG: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}  # fmt: skip
RULES = [{"match": "linear", "scheme": "int4-g128"}]
RECIPES = {
    "rtn": {"version": 1, "name": "bench-rtn", "rules": RULES},
    "gptq": {
        "version": 1, "name": "bench-gptq", "rules": RULES, "rounding": {"method": "gptq"},
        "calibration": {"dataset": "builtin:python", "samples": SAMPLES, "length": LENGTH},
    },
}  # fmt: skip


def make_model(folder: Path) -> None:
    """Write the checkpoint, with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(LlamaConfig(**CONFIG), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="500MB")
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False).save_pretrained(folder)


def child(task: str, model: str, out: str) -> None:
    """One measurement; prints JSON."""
    import transformers.models.llama.modeling_llama  # noqa: F401 - part of the base

    import llmquant.api
    from llmquant.memory import peak_resident_bytes

    base, began = peak_resident_bytes(), time.monotonic()
    if task == "plan-70b":
        llmquant.api.plan(model, "mixed-int4-int8")
    else:
        llmquant.api.quantize(model, RECIPES[task], out)
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"base_bytes": base, "peak_bytes": peak_resident_bytes(), "seconds": seconds}))


def measure(task: str, model: Path, out: Path) -> dict[str, float]:
    """Run `child` in a process of its own."""
    arguments = [sys.executable, __file__, "--child", task, str(model), str(out)]
    began = time.monotonic()
    text = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = json.loads(text.splitlines()[-1])
    result["over_base_gb"] = round((result["peak_bytes"] - result["base_bytes"]) / 1e9, 3)
    result["process_seconds"] = round(time.monotonic() - began, 1)
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="time and peak memory of streaming quantization")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", type=Path, help="keep the 1B model here and reuse it")
    parser.add_argument("--tasks", nargs="+", choices=("plan-70b", *RECIPES), default=["plan-70b", *RECIPES])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    from llmquant.kernels.bench.common.facts import facts, write_json

    result = facts("cpu") | {"model": CONFIG, "samples": SAMPLES, "length": LENGTH, "results": {}}
    with tempfile.TemporaryDirectory() as work:
        model = args.model or Path(work) / "model"
        if not (model / "config.json").exists() and set(args.tasks) != {"plan-70b"}:
            make_model(model)
        for task in args.tasks:
            subject = ROOT / "tests" / "configs" / "llama3-70b.json" if task == "plan-70b" else model
            result["results"][task] = measure(task, subject, Path(work) / task)
            print(task, result["results"][task], flush=True)
            if args.json:
                write_json(args.json, result)


if __name__ == "__main__":
    main()
