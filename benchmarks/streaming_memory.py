"""Time and peak memory of streaming quantization on a random-weight 1B Llama, and of planning a 70B model.

    python benchmarks/streaming_memory.py --json benchmarks/results/streaming_memory.json

Each measurement runs in its own process. Peak memory is VmHWM over that of an interpreter that only imported llmquant's
engine. The weights are random (scaled as at initialization), in bf16, in shards of 500 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

SAMPLES, LENGTH = 64, 512
# The shape of Llama 3.2 1B; the vocabulary too, since embeddings are what small models consist of.
HEAD = 64
CONFIG = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": HEAD, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "rope_theta": 500000.0,
}  # fmt: skip
RULES = [{"match": "linear", "scheme": "int4-g128"}]
RECIPES = {
    "rtn": {"version": 1, "name": "bench-rtn", "rules": RULES},
    "gptq": {
        "version": 1, "name": "bench-gptq", "rules": RULES, "rounding": {"method": "gptq"},
        "calibration": {"dataset": "builtin:python", "samples": SAMPLES, "length": LENGTH},
    },
}  # fmt: skip


def make_model(folder: Path) -> int:
    """Write the checkpoint block by block; returns its bytes."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**CONFIG, dtype=torch.bfloat16, architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    hidden, ffn, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["num_key_value_heads"] * HEAD

    def matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.02).to(torch.bfloat16)

    def block(i: int) -> dict[str, torch.Tensor]:
        p = f"model.layers.{i}."
        shapes = {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }  # fmt: skip
        ones = torch.ones(hidden, dtype=torch.bfloat16)
        norms = {f"{p}input_layernorm.weight": ones, f"{p}post_attention_layernorm.weight": ones.clone()}
        return {f"{p}{name}.weight": matrix(*shape) for name, shape in shapes.items()} | norms

    outside = {
        "model.embed_tokens.weight": matrix(config.vocab_size, hidden),
        "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
    }
    step = 4
    parts = [lambda: outside] + [
        lambda i=i: {k: v for j in range(i, i + step) for k, v in block(j).items()}
        for i in range(0, config.num_hidden_layers, step)
    ]
    weight_map, total = {}, 0
    for number, part in enumerate(parts, 1):
        name, tensors = f"model-{number:05d}-of-{len(parts):05d}.safetensors", part()
        save_file(tensors, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


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
    parser.add_argument("--tasks", nargs="+", default=["plan-70b", "rtn", "gptq"])
    parser.add_argument("--child", nargs=3)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    config70b = Path(__file__).parents[1] / "tests" / "configs" / "llama3-70b.json"
    with tempfile.TemporaryDirectory() as work:
        model = args.model or Path(work) / "model"
        if not (model / "config.json").exists() and set(args.tasks) != {"plan-70b"}:
            make_model(model)
        results = {}
        for task in args.tasks:
            results[task] = measure(task, config70b if task == "plan-70b" else model, Path(work) / task)
            print(task, results[task], flush=True)
    if args.json:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        facts = {
            "model": CONFIG, "samples": SAMPLES, "length": LENGTH, "results": results, "commit": commit,
            "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load": os.getloadavg()},
            "versions": {name: version(name) for name in ("torch", "transformers", "llmquant")}
            | {"python": platform.python_version()},
        }  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(facts, indent=2) + "\n")


def cpu_name() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
