"""Reader 2: vLLM. Log-probabilities of prompts, from a quantized folder and, if that loads, from its dense twin.

Runs under an interpreter with vLLM: serve_vllm.py JOBS.json RESULTS.json. A job is {"folder", "twin", "prompts": lists
of token ids}; results, {"error"} or {"dtype", "logprobs", "greedy"} for each, lie under the folders. vLLM is imported
once, and serves each folder in a forked child: seconds instead of a minute, and nothing stays for the next.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

# For all that follows: no network, one process a model, and int4 weights with 16-bit activations on AMX machines too.
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_INT4_W4A8": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
# What a start imports late; the children should find it there.
PRELOADED = ("engine.llm_engine", "engine.core", "executor.uniproc_executor", "worker.cpu_worker")
CONTINUATION = 8  # tokens
SECONDS = 300  # for one folder


def serve(folder: str, prompts: list[list[int]]) -> dict[str, Any]:
    """Load a folder in vLLM, in the dtype that it picks; score the prompts and continue each greedily."""
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    try:
        longest = max(map(len, prompts)) + CONTINUATION
        model = LLM(folder, enforce_eager=True, max_model_len=longest, max_num_seqs=4, skip_tokenizer_init=True)
        asked = SamplingParams(max_tokens=CONTINUATION, temperature=0, prompt_logprobs=0, detokenize=False)
        answers = model.generate([{"prompt_token_ids": ids} for ids in prompts], asked)
    except BaseException as error:  # noqa: BLE001 - any failure is a result
        return {"error": f"{type(error).__name__}: {error}"[:1000]}
    return {
        "dtype": str(model.llm_engine.model_config.dtype).removeprefix("torch."),
        "logprobs": [
            [answer.prompt_logprobs[i][ids[i]].logprob for i in range(1, len(ids))]
            for answer, ids in zip(answers, prompts, strict=True)
        ],
        "greedy": [list(answer.outputs[0].token_ids) for answer in answers],
    }


def serve_in_child(folder: str, prompts: list[list[int]], out: Path) -> dict[str, Any]:
    """The same in a forked process, whose messages go to a file beside `out`."""
    out.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        with out.with_suffix(".log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            out.write_text(json.dumps(serve(folder, prompts)), encoding="utf-8")
        os._exit(0)
    end = time.monotonic() + SECONDS
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"error": f"no answer after {SECONDS} s"}
        time.sleep(0.1)
    return json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"error": "the process died"}


def main(jobs: Path, results: Path) -> None:
    """Run all jobs."""
    os.environ.update(SETTINGS)
    for module in PRELOADED:
        importlib.import_module(f"vllm.v1.{module}")
    packages = ("vllm", "vllm-cpu", "torch", "transformers", "compressed-tensors")
    installed = {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions()}
    versions = {name: installed[name] for name in packages if name in installed}
    found: dict[str, Any] = {"versions": versions, "results": {}}
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        for folder in (job["folder"], job["twin"]):
            if folder in found["results"]:
                continue
            started = time.monotonic()
            answer = serve_in_child(folder, job["prompts"], results.with_name("vllm_answer.json"))
            found["results"][folder] = answer
            state = "refused" if "error" in answer else "served"
            print(f"  {folder}: {state} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            if "error" in answer:
                break  # the twin has nothing to be compared with
    results.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
