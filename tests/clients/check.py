"""Do other readers do with our folders what `llmquant plan` says? Quantizes, runs the readers, compares.

    python tests/clients/check.py --json clients.json

Runs in the llmquant environment. LLMQUANT_PLAIN_PYTHON and LLMQUANT_VLLM_PYTHON name the interpreters of the other
readers; one that is not set is left out. Exit status 1: a reader and the plan disagree.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import transformers
from cases import CASES, SERVED
from check_transformers import compare
from folders import Folders, make_folders

import llmquant.hf
from llmquant.engine.prepare import load_tokenizer
from llmquant.formats.compressed_tensors.readers import LLMQUANT, TRANSFORMERS, VLLM_CPU
from llmquant.machine import machine, versions

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
# Between two correct programs the log-probability of a token in bfloat16 differs by 0.013 (standard deviation), with
# 8-bit activations by 0.023; so the mean over 8,000 tokens is known to 0.0002. Between the unquantized model and an
# int4-g32 twin it is 0.063, while their means differ by no more than 0.0014: the deviation is the sharper criterion.
PROMPTS, LENGTH = 34, 240
# Sums of integers are exact, those of rounded floats are rounded again: other bits, but no larger errors.
INTEGER_PRODUCTS = 1.1
TOLERANCES = {"mean_logprob_difference": 1e-3, "token_deviation": 0.03, "worst_token": 0.25}


def main() -> int:
    """Run the check."""
    args = _parser().parse_args()
    commit = _commit()
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["LLMQUANT_CPU_KERNELS"] = "reference"  # the twin's bits; the C++ kernels do not round the weights
    cases = [case for case in CASES if fnmatch.fnmatch(case.name, args.cases)]
    if args.reader == "vllm":
        cases = [case for case in cases if case.vllm]
    work = args.work or Path(tempfile.mkdtemp(prefix="llmquant-clients-"))
    made = []
    for case in cases:
        _say(f"quantizing {case.name}")
        made.append(make_folders(case, args.data, work))
    entries = [_entry(folders) for folders in made]
    clients: dict[str, dict[str, str]] = {}
    control = None
    if args.reader in (None, "transformers"):
        _measure_llmquant(made, entries)
        _measure_transformers(made, entries, clients, work)
    if args.reader in (None, "vllm"):
        control = _measure_vllm(made, entries, clients, work, args.data)
    disagreements = [
        f"{entry['case']}, {reader}: the plan says {result['plan']}, measured: {result['measured']}"
        for entry in entries
        for reader, result in entry["readers"].items()
        if result["plan"] != result["works"]
    ]
    if control and _within(control):
        disagreements.append(f"the check is blind: the unquantized model passes for {control['against']}")
    print(_table(entries))
    print("\n".join(disagreements) or f"{sum(len(entry['readers']) for entry in entries)} results, no disagreement")
    if args.json:
        document = {**_document(commit, entries, clients), "control": control, "disagreements": disagreements}
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if disagreements else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare what other readers do with what llmquant plan says.")
    default = os.environ.get("LLMQUANT_TEST_DATA") or REPOSITORY.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default), help="folder with models/ and text/")
    parser.add_argument("--work", type=Path, help="where to make the folders (a new temporary one)")
    parser.add_argument("--reader", choices=("transformers", "vllm"), help="only this one")
    parser.add_argument("--cases", default="*", metavar="GLOB", help="only these, such as '*--int4-g32'")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _entry(folders: Folders) -> dict[str, Any]:
    return {
        "case": folders.case.name,
        "model": folders.case.model,
        "dtype": folders.case.dtype or "as it is",
        "recipe": folders.case.recipe,
        "bits_per_weight": round(folders.bits_per_weight, 3),
        "negative_scales": round(folders.negative_scales, 3),
        "readers": {},
    }


def _add(entry: dict[str, Any], folders: Folders, reader: str, works: bool, measured: str, **numbers: Any) -> None:
    verdict = folders.verdicts[reader]
    entry["readers"][reader] = {
        "plan": verdict.ok,
        "works": works,
        "measured": measured,
        "plan_note": verdict.note,
        **numbers,
    }


# --- llmquant and transformers ---------------------------------------------------------------------------------------


def _job(folders: Folders) -> dict[str, Any]:
    size = folders.vocabulary
    prompts = [[(start + step * i) % size for i in range(64)] for start, step in ((1, 7), (11, 101))]
    return {
        "folder": str(folders.folder),
        "twin": str(folders.twin),
        "prompts": [*prompts, [5 % size]],  # one token alone: another way through matrix products
        "activations": folders.activations,
    }


def _measure_llmquant(made: Sequence[Folders], entries: Sequence[dict[str, Any]]) -> None:
    llmquant.hf.register()
    transformers.utils.logging.disable_progress_bar()
    for folders, entry in zip(made, entries, strict=True):
        _say(f"llmquant: {folders.case.name}")
        result = compare(_job(folders))
        if "error" not in result and not folders.activations and result["packed"] != folders.quantized:
            result = {"error": f"only {result['packed']} of {folders.quantized} layers are packed"}
        _add_logits(entry, folders, LLMQUANT, result)


def _measure_transformers(
    made: Sequence[Folders], entries: Sequence[dict[str, Any]], clients: dict[str, dict[str, str]], work: Path
) -> None:
    found = _run_client("LLMQUANT_PLAIN_PYTHON", "check_transformers.py", [_job(folders) for folders in made], work)
    if found is None:
        return
    clients[TRANSFORMERS] = found["versions"]
    for folders, entry in zip(made, entries, strict=True):
        _add_logits(entry, folders, TRANSFORMERS, found["results"][str(folders.folder)])


def _add_logits(entry: dict[str, Any], folders: Folders, reader: str, result: dict[str, Any]) -> None:
    if "error" in result:
        _add(entry, folders, reader, False, f"refused: {_first_line(result['error'])}")
        return
    difference = {"largest_logit_difference": result["largest_difference"]}
    if result.get("equal_with_activations"):
        _add(entry, folders, reader, True, "bit-equal, with 8-bit activations", **difference)
    elif result.get("error_ratio", INTEGER_PRODUCTS + 1) <= INTEGER_PRODUCTS:
        text = f"integer products: {result['error_ratio']:.2f} times the error of rounded inputs"
        _add(entry, folders, reader, True, text, error_ratio=result["error_ratio"], **difference)
    elif result["equal"]:
        _add(entry, folders, reader, True, "bit-equal", **difference)
    else:
        missing = f", missing {len(result['missing'])} tensors" if result["missing"] else ""
        _add(entry, folders, reader, False, f"other logits{missing}", **difference)


# --- vLLM ------------------------------------------------------------------------------------------------------------


def _measure_vllm(
    made: Sequence[Folders],
    entries: Sequence[dict[str, Any]],
    clients: dict[str, dict[str, str]],
    work: Path,
    data: Path,
) -> dict[str, Any] | None:
    """Adds vLLM's results to `entries`; returns the control, where vLLM gets the unquantized model instead."""
    served = [(folders, entry) for folders, entry in zip(made, entries, strict=True) if folders.case.vllm]
    prompts = _prompts(data)
    jobs = [
        {
            "folder": str(folders.folder),
            "twin": str(folders.twin),
            "prompts": [[token % folders.vocabulary for token in ids] for ids in prompts],
        }
        for folders, _ in served
    ]
    like = next((folders for folders, _ in served if folders.case.name == f"{SERVED}--int4-g32"), None)
    source = str(data / "models" / SERVED)
    if like:
        jobs.append({"folder": source, "twin": str(like.twin), "prompts": prompts})
    found = _run_client("LLMQUANT_VLLM_PYTHON", "serve_vllm.py", jobs, work)
    if found is None:
        return None
    clients[VLLM_CPU] = found["versions"]
    for folders, entry in served:
        answer, twin = (found["results"].get(str(folder)) for folder in (folders.folder, folders.twin))
        if "cpu_gemm_wna16" in answer.get("error", "") and "AVX-512" in folders.verdicts[VLLM_CPU].note:
            # What that machine lacks. The model has loaded: vLLM asks for its kernel at the first token.
            _add(entry, folders, VLLM_CPU, True, "loads, and has no kernel for this processor, as the plan says")
        elif "error" in answer:
            _add(entry, folders, VLLM_CPU, False, f"refused: {_vllm_reason(answer['error'])}")
        elif "error" in twin:
            _add(entry, folders, VLLM_CPU, False, f"twin refused: {_vllm_reason(twin['error'])}")
        else:
            scores = _scores(answer, twin)
            good = _within(scores)
            text = f"mean {scores['mean_logprob_difference']:+.1e}, sd {scores['token_deviation']:.3f}"
            _add(entry, folders, VLLM_CPU, good, text if good else f"other log-probabilities: {text}", **scores)
    if not like:
        return None
    return {"against": "int4-g32", **_scores(found["results"][source], found["results"][str(like.twin)])}


def _prompts(data: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(data / "models" / SERVED)
    text = (data / "text" / "gutenberg.valid.txt").read_text(encoding="utf-8")
    ids = tokenizer(text[400_000:800_000], add_special_tokens=False, verbose=False).input_ids
    stride = len(ids) // PROMPTS
    return [[tokenizer.bos_token_id, *ids[i * stride : i * stride + LENGTH - 1]] for i in range(PROMPTS)]


def _scores(answer: dict[str, Any], twin: dict[str, Any]) -> dict[str, Any]:
    differences = [
        [a - b for a, b in zip(mine, dense, strict=True)]
        for mine, dense in zip(answer["logprobs"], twin["logprobs"], strict=True)
    ]
    tokens = [difference for prompt in differences for difference in prompt]
    same = sum(a == b for a, b in zip(answer["greedy"], twin["greedy"], strict=True))
    return {
        "served_in": answer["dtype"],
        "tokens": len(tokens),
        "mean_logprob_difference": mean(tokens),
        "standard_error": stdev(map(mean, differences)) / len(differences) ** 0.5,
        "token_deviation": stdev(tokens),
        "worst_token": max(map(abs, tokens)),
        "greedy_equal": f"{same}/{len(differences)}",
    }


def _within(scores: dict[str, Any]) -> bool:
    return all(abs(scores[name]) <= limit for name, limit in TOLERANCES.items())


def _vllm_reason(error: str) -> str:
    """The line that tells why, of a long message."""
    _, found, reason = error.partition("CPUWNA16LinearKernel cannot implement due to: ")
    return _first_line(reason if found else error)


# --- results ---------------------------------------------------------------------------------------------------------


def _run_client(variable: str, script: str, jobs: list[dict[str, Any]], work: Path) -> dict[str, Any] | None:
    python = os.environ.get(variable)
    if not python:
        _say(f"{variable} is not set: {script} is left out")
        return None
    asked, answers = work / f"{script}.jobs.json", work / f"{script}.results.json"
    asked.write_text(json.dumps(jobs), encoding="utf-8")
    _say(f"{script}: {len(jobs)} folders")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    log = work / f"{script}.log"
    with log.open("w") as messages:
        command = [python, str(HERE / script), str(asked), str(answers)]
        done = subprocess.run(command, env=environment, stdout=messages, stderr=messages, check=False, cwd=work)
    if done.returncode:
        raise SystemExit(f"{script} failed, see {log}")
    return json.loads(answers.read_text(encoding="utf-8"))


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:160]


def _table(entries: Sequence[dict[str, Any]]) -> str:
    names = (LLMQUANT, TRANSFORMERS, VLLM_CPU)
    lines = [f"| model | recipe | bits | {' | '.join(names)} |", "|---" * (3 + len(names)) + "|"]
    for entry in entries:
        model = entry["model"] if entry["dtype"] == "as it is" else f"{entry['model']} as {entry['dtype']}"
        cells = [entry["readers"].get(name, {}).get("measured", "") for name in names]
        lines.append(f"| {model} | {entry['recipe']} | {entry['bits_per_weight']:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "llmquant", "recipes", "kernels")
    return git("rev-parse", "HEAD") + (" with changes" if changed else "")


def _document(commit: str, entries: Sequence[dict[str, Any]], clients: dict[str, dict[str, str]]) -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "commit": commit,
        "machine": machine(torch.device("cpu")),
        "versions": {LLMQUANT: versions(), **clients},
        "tolerances": TOLERANCES,
        "cases": entries,
    }


if __name__ == "__main__":
    sys.exit(main())
