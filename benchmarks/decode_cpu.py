"""Decode and prefill of a 1B-shaped Llama on the CPU: transformers dense, llmquant, and llama.cpp.

    python benchmarks/decode_cpu.py --llama-python peers/bin/python --json benchmarks/results/decode_cpu.json
    python benchmarks/decode_cpu.py --quick

Weights are random, so nothing is downloaded and only speed is measured. Each thread count runs in a process of its own;
in it the contenders take turns, a prompt and then single tokens each, so that a machine that slows down slows all.
llama.cpp (--llama-python: a Python with llama-cpp-python and gguf) waits in a second process between its turns.
`overhead` is the same number of layers with 64 channels: what is left of a token when the arithmetic costs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from llmquant.eval.statistics import spread
from llmquant.hf.fuse import fuse, unfuse
from llmquant.hf.place import finish, place_empty
from llmquant.kernels.cpu import native
from llmquant.machine import cpu_name, versions
from llmquant.nn.accuracy import ACCURACIES, Accuracy, set_accuracy
from llmquant.nn.linear import PackedLinear
from llmquant.spec import Scheme

SHAPE = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 1024,
}  # fmt: skip
TINY = SHAPE | {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
TINY["num_key_value_heads"] = 2
PEER = "llama.cpp Q4_0"


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        layers: of all models.
        threads: thread counts.
        rounds: timed turns of each contender.
        steps: single tokens of a turn.
        prompts: tokens of the prompts.
        head: scheme of the head, or keep.
        dense: dtypes of the dense baselines.
        compiled: accuracies in which the model is compiled too.
        llama_python: interpreter that has llama.cpp.
    """

    layers: int
    threads: tuple[int, ...]
    rounds: int
    steps: int
    prompts: tuple[int, ...]
    head: str
    dense: tuple[str, ...]
    compiled: tuple[Accuracy, ...]
    llama_python: str | None


@dataclass(frozen=True)
class Turn:
    """Seconds of a prompt, and of each token after it."""

    prefill: float
    steps: list[float]


@dataclass(frozen=True)
class Contender:
    """A name, what takes a turn, and whether its prefill is worth timing."""

    name: str
    turn: Callable[[int, int], Turn]
    prefill: bool = True


def dense_model(shape: dict[str, Any], dtype: torch.dtype) -> LlamaForCausalLM:
    """A Llama with random weights."""
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(LlamaConfig(**shape), dtype=dtype)
    return fill(model)


def packed_model(shape: dict[str, Any], scheme: str, head: str) -> LlamaForCausalLM:
    """A Llama whose linear layers hold random codes, float32 elsewhere, prepared and fused as after loading."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape, dtype=torch.float32))
    schemes = {
        name: Scheme.parse(head if name == "lm_head" else scheme)
        for name, module in model.named_modules()
        if type(module) is nn.Linear
    }
    place_empty(model, {name: each for name, each in schemes.items() if not each.is_keep}, torch.float32)
    fill(model)
    finish(model)
    for layer in model.modules():
        if isinstance(layer, PackedLinear):
            layer.prepare()
    fuse(model)
    return model


def fill(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Give a model on the meta device memory and random weights."""
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.weight_packed.data.random_(-(2**31), 2**31 - 1)
            scale = 0.02 / 2 ** (module.scheme.bits - 2)
            module.weight_scale.data.uniform_(0.5 * scale, scale)
            module.weight_shape.data.copy_(torch.tensor([module.out_features, module.in_features]))
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data.fill_(1) if parameter.ndim == 1 else parameter.data.uniform_(-0.03, 0.03)
    return model.eval().requires_grad_(False)


def turn_of(model: LlamaForCausalLM, prompt: int, steps: int, compiled: Any = None) -> Turn:
    """One turn of a model in this process; with `compiled`, the single tokens run that with a static cache."""
    ids = torch.arange(prompt + steps)[None] % model.config.vocab_size
    cache = StaticCache(config=model.config, max_cache_len=prompt + steps) if compiled is not None else None
    step = model if compiled is None else compiled
    with torch.no_grad():
        start = time.perf_counter()
        # Like generate: only the logits of the last position.
        cache = model(ids[:, :prompt], past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
        prefill = time.perf_counter() - start
        return Turn(prefill, [time_step(step, ids[:, i : i + 1], cache) for i in range(prompt, prompt + steps)])


def time_step(model: Any, token: Tensor, cache: Any) -> float:
    """Seconds of one token."""
    start = time.perf_counter()
    model(token, past_key_values=cache, use_cache=True)
    return time.perf_counter() - start


def packed_contenders(shape: dict[str, Any], plan: Plan, group: int) -> list[Contender]:
    """Contenders of llmquant; no model is switched between fused and not, or between graphs, while it is timed.

    Args:
        shape: of the model.
        plan: of the run.
        group: inputs per scale.
    """
    int4 = f"int4-g{group}"
    plain, fused = packed_model(shape, int4, plan.head), packed_model(shape, int4, plan.head)
    unfuse(plain)
    int8 = packed_model(shape, "int8", plan.head if plan.head == "keep" else "int8")
    found = []
    for mode in ACCURACIES:
        found += [
            packed_contender(f"{int4} {mode} unfused", plain, mode),
            packed_contender(f"{int4} {mode} fused", fused, mode, prefill=True),
            packed_contender(f"int8 {mode} fused", int8, mode, prefill=True),
        ]
    for mode in plan.compiled:
        model = packed_model(shape, int4, plan.head)
        set_accuracy(model, mode)
        step = torch.compile(model, fullgraph=True, dynamic=False)
        found.append(packed_contender(f"{int4} {mode} compiled", model, mode, step))
    return found


def packed_contender(
    name: str, model: LlamaForCausalLM, mode: Accuracy, compiled: Any = None, prefill: bool = False
) -> Contender:
    """One way to run a packed model."""

    def turn(prompt: int, steps: int) -> Turn:
        set_accuracy(model, mode)
        return turn_of(model, prompt, steps, compiled)

    return Contender(f"llmquant {name}", turn, prefill)


def llama_contender(stack: ExitStack, plan: Plan, threads: int) -> tuple[Contender, str]:
    """llama.cpp in its own process, and its version."""
    task = json.dumps({"shape": SHAPE | {"num_hidden_layers": plan.layers}, "threads": threads})
    script = Path(__file__).with_name("llama_cpp_decode.py")
    process = stack.enter_context(
        subprocess.Popen(
            [str(plan.llama_python), str(script), task], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    )
    assert process.stdin is not None
    assert process.stdout is not None
    answers, requests = process.stdout, process.stdin
    stack.callback(requests.close)
    version = json.loads(answers.readline())["version"]

    def turn(prompt: int, steps: int) -> Turn:
        time.sleep(0.2)  # our threads go to sleep first
        print(json.dumps({"prompt": prompt, "steps": steps}), file=requests, flush=True)
        answer = json.loads(answers.readline())
        return Turn(answer["prefill_s"], answer["step_s"])

    return Contender(PEER, turn), version


def measure(contenders: list[Contender], plan: Plan, threads: int) -> list[dict[str, Any]]:
    """Let contenders take turns; speeds, and ratios to llama.cpp within the rounds."""
    first, *longer = plan.prompts
    turns: dict[str, list[dict[int, Turn]]] = {each.name: [] for each in contenders}
    for round_number in range(plan.rounds + 1):  # the first warms up, and compiles
        for each in contenders if round_number % 2 else reversed(contenders):
            taken = {first: each.turn(first, plan.steps)}
            taken |= {prompt: each.turn(prompt, 0) for prompt in longer if each.prefill and round_number}
            turns[each.name].append(taken)
    return [row(each, turns, plan, threads) for each in contenders]


def row(contender: Contender, turns: dict[str, list[dict[int, Turn]]], plan: Plan, threads: int) -> dict[str, Any]:
    """What was measured of one contender."""
    timed, peer = turns[contender.name][1:], turns.get(PEER, [])[1:]
    first = plan.prompts[0]
    tokens = [1e3 * step for taken in timed for step in taken[first].steps]
    medians = [spread(taken[first].steps).median for taken in timed]
    found: dict[str, Any] = {"contender": contender.name, "threads": threads, "load": round(os.getloadavg()[0], 2)}
    found["decode_ms"] = {"best": round(min(tokens), 3), "median": round(spread(tokens).median, 3)}
    if peer:
        ratios = [spread(p[first].steps).median / m for p, m in zip(peer, medians, strict=True)]
        found["decode_ratio_llama"] = round(spread(ratios).median, 3)
    if not contender.prefill:
        return found
    for prompt in plan.prompts:
        seconds = [taken[prompt].prefill for taken in timed]
        found[f"prefill_{prompt}_tok_s"] = {
            "best": round(prompt / min(seconds), 1), "median": round(prompt / spread(seconds).median, 1),
        }  # fmt: skip
        if peer:
            ratios = [p[prompt].prefill / s for p, s in zip(peer, seconds, strict=True)]
            found[f"prefill_{prompt}_ratio_llama"] = round(spread(ratios).median, 3)
    return found


def run(plan: Plan, threads: int) -> dict[str, Any]:
    """Everything with one thread count; in a process of its own."""
    torch.set_num_threads(threads)
    shape = SHAPE | {"num_hidden_layers": plan.layers}
    result: dict[str, Any] = {"llama_cpp": None, "overhead": overhead(plan, threads)}
    torch._dynamo.reset()
    with ExitStack() as stack:
        contenders = [dense_contender(shape, dtype) for dtype in plan.dense] + packed_contenders(shape, plan, 128)
        if plan.llama_python:
            peer, result["llama_cpp"] = llama_contender(stack, plan, threads)
            contenders.append(peer)
        result["rows"] = measure(contenders, plan, threads)
    return result


def overhead(plan: Plan, threads: int) -> list[dict[str, Any]]:
    """Milliseconds per layer and token of a model that is all overhead; what the model does once counts too."""
    # Compiling costs a minute, so only a full run, which has both accuracies, compiles here.
    short = {"rounds": max(3, plan.rounds), "prompts": (16,), "steps": 32}
    plan = replace(plan, **short, head="keep", compiled=plan.compiled[1:])
    contenders = [dense_contender(TINY, "float32"), *packed_contenders(TINY, plan, 32)]
    for name, model in (
        ("transformers float32", dense_model(TINY, torch.float32)),
        ("llmquant int4-g32 exact fused", packed_model(TINY, "int4-g32", "keep")),
    ):
        contenders.append(Contender(f"{name}, generate", partial(generate, model), prefill=False))
    return [
        {
            "contender": each["contender"],
            "threads": threads,
            "ms_per_layer": round(each["decode_ms"]["median"] / TINY["num_hidden_layers"], 4),
            "best_ms_per_layer": round(each["decode_ms"]["best"] / TINY["num_hidden_layers"], 4),
        }
        for each in measure(contenders, plan, threads)
    ]


def generate(model: Any, prompt: int, steps: int) -> Turn:
    """A turn of `generate`, the prompt included."""
    ids = torch.arange(prompt)[None]
    start = time.perf_counter()
    model.generate(ids, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, pad_token_id=0)
    return Turn(0.0, [(time.perf_counter() - start) / steps])


def dense_contender(shape: dict[str, Any], dtype: str) -> Contender:
    """transformers as it is."""
    model = dense_model(shape, getattr(torch, dtype))
    return Contender(f"transformers {dtype}", lambda prompt, steps: turn_of(model, prompt, steps))


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    for each in result["overhead"]:
        print(f"{each['contender']:36} T={each['threads']}  {each['ms_per_layer']:7.3f} ms per layer and token")
    for each in result["rows"]:
        line = f"{each['contender']:36} T={each['threads']}  {each['decode_ms']['median']:8.2f} ms/token"
        line += "".join(f"  {k[:-6]} {v['median']:7.1f} tok/s" for k, v in each.items() if k.endswith("tok_s"))
        line += f"  {each['decode_ratio_llama']:.2f}x llama.cpp" if "decode_ratio_llama" in each else ""
        print(line, flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="decode and prefill of a 1B-shaped Llama on the CPU")
    parser.add_argument("--quick", action="store_true", help="two layers, one thread, in a minute")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--llama-python", help="a Python that has llama-cpp-python and gguf")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--head", default="int4-g128", help="scheme of the int4 models' head, or keep")
    parser.add_argument("--dense", nargs="*", default=["float32", "bfloat16"], help="dtypes of the dense baselines")
    parser.add_argument("--compiled", nargs="*", choices=ACCURACIES, default=list(ACCURACIES), help="compile these too")
    parser.add_argument("--prompts", nargs="+", type=int, default=[128, 512])
    args = parser.parse_args()
    full = Plan(
        layers=SHAPE["num_hidden_layers"],
        threads=tuple(args.threads),
        rounds=args.rounds,
        steps=16,
        prompts=tuple(args.prompts),
        head=args.head,
        dense=tuple(args.dense),
        compiled=tuple(args.compiled),
        llama_python=args.llama_python,
    )
    quick = {"layers": 2, "threads": (1,), "rounds": 1, "steps": 4, "prompts": (128,)}
    plan = replace(full, **quick, dense=("float32",), compiled=("fast",)) if args.quick else full
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result: dict[str, Any] = {
        "shape": SHAPE, "plan": asdict(plan), "commit": commit, "versions": versions(),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "isa": native.isa(), "load": os.getloadavg()},
        "overhead": [], "rows": [],
    }  # fmt: skip
    result["plan"]["llama_python"] = bool(plan.llama_python)
    for threads in plan.threads:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found = pool.submit(run, plan, threads).result()
        result["versions"]["llama-cpp-python"] = found.pop("llama_cpp")
        for key, rows in found.items():
            result[key] += rows
        show(found)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
