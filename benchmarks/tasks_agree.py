"""Whether `llmquant eval --tasks` and lm-eval's own command line give the same log-likelihoods, document by document.

    python benchmarks/tasks_agree.py MODEL --data FOLDER --json agree.json

FOLDER has lambada_test.jsonl, piqa/ and blimp.tar.xz. lm-eval runs as a process of its own over MODEL in float32, with
its own definitions, to which only the data is given; then what answers for --tasks runs over MODEL in float32. What
lm-eval wrote into --results is used again. The exit code is 1 where any log-likelihood differs by more than 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmquant.engine.prepare import load_tokenizer
from llmquant.eval.precision import in_float32
from llmquant.eval.tasks.harness import Answer, ask
from llmquant.eval.tasks.load import load as load_tasks
from llmquant.hf.load import load
from llmquant.machine import versions
from llmquant.progress import Progress

LIMIT = 1e-4  # nats
_PACKAGES = ("lm-eval", "transformers", "torch", "datasets")
BLIMP = ("adjunct_island", "anaphor_number_agreement", "wh_vs_that_no_gap")


def main() -> int:
    """Run both, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("lm_eval_results"), help="an empty or new folder")
    for name, count in (("lambada", 500), ("piqa", 200), ("blimp", 200)):
        parser.add_argument(f"--{name}", type=int, default=count, help="documents (of each set)")
    args = parser.parse_args()
    counts = {"lambada_openai": args.lambada, "piqa": args.piqa, **{f"blimp_{name}": args.blimp for name in BLIMP}}
    if not any(args.results.rglob("samples_*.jsonl")):
        command_line(args.model, args.data.resolve(), args.results.resolve(), counts)
    ours = own(args.model, args.data, counts)
    theirs = {name: samples(args.results, name) for name in counts}
    found = {name: compared(theirs[name], ours[name]) for name in counts}
    agree = max(each["largest_difference"] for each in found.values()) <= LIMIT
    result = {
        "limit": LIMIT,
        "agree": agree,
        "tasks": found,
        "model": Path(args.model).name,
        "versions": versions(_PACKAGES),
    }
    args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0 if agree else 1


def command_line(model: str, data: Path, results: Path, counts: dict[str, int]) -> None:
    """`python -m lm_eval run`, offline."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        definitions(folder, data)
        wanted = {f"its_{name}": list(range(count)) for name, count in counts.items()}
        command = [
            "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32",
            "--device", "cpu", "--batch_size", "8", "--tasks", ",".join(wanted), "--include_path", str(folder),
            "--samples", json.dumps(wanted), "--output_path", str(results), "--log_samples",
        ]  # fmt: skip
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder)}
        subprocess.run([sys.executable, *command], check=True, env=offline)


def samples(results: Path, name: str) -> list[dict[str, Any]]:
    """What the command line wrote of a task, in the order of the documents."""
    (file,) = results.rglob(f"samples_its_{name}_*.jsonl")
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted(found, key=lambda each: each["doc_id"])


def definitions(folder: Path, data: Path) -> None:
    """Files that include lm-eval's own definitions and change nothing but where the documents are."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    own = Path(spec.origin).parent / "tasks"
    labels = (data / "piqa" / "valid-labels.lst").read_text(encoding="utf-8").split()
    goals = (data / "piqa" / "valid.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.dumps({**json.loads(row), "label": int(label)}) for row, label in zip(goals, labels, strict=True)]
    (folder / "piqa.jsonl").write_text("\n".join(rows), encoding="utf-8")
    with tarfile.open(data / "blimp.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    sources = {
        "lambada_openai": (own / "lambada" / "lambada_openai.yaml", "test", data / "lambada_test.jsonl"),
        "piqa": (own / "piqa" / "piqa.yaml", "validation", folder / "piqa.jsonl"),
    }
    for name in BLIMP:
        sources[f"blimp_{name}"] = own / "blimp" / f"{name}.yaml", "train", folder / "data" / f"{name}.jsonl"
    for name, (theirs, split, file) in sources.items():
        lines = (
            f"include: {theirs}", f"task: its_{name}", "dataset_path: json", "dataset_name: null",
            f"dataset_kwargs: {{data_files: {{{split}: {file}}}}}", "training_split: null", "tag: null",
        )  # fmt: skip
        (folder / f"its_{name}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def own(model: str, data: Path, counts: dict[str, int]) -> dict[str, Sequence[Answer]]:
    """Our answers by task; the harness is asked once for each number of documents."""
    files = {"lambada": data / "lambada_test.jsonl", "piqa": data / "piqa", "blimp": data / "blimp.tar.xz"}
    tokenizer, loaded_model = load_tokenizer(Path(model)), load(model)
    found: dict[str, Sequence[Answer]] = {}
    with in_float32(loaded_model):
        for count in dict.fromkeys(counts.values()):
            names = [name for name, each in counts.items() if each == count]
            used = {key: str(file) for key, file in files.items() if any(name.startswith(key) for name in names)}
            tasks = load_tasks(names, used, ())
            found |= ask(loaded_model, tokenizer, tasks, Progress(), who="dense", limit=count)
    return found


def compared(theirs: list[dict[str, Any]], ours: Sequence[Answer]) -> dict[str, Any]:
    """How far the log-likelihoods of the same documents are apart, and how many are scored differently."""
    assert [each["doc_id"] for each in theirs] == [each.id for each in ours]
    both = list(zip(theirs, ours, strict=True))
    apart = [
        abs(float(each[0][0]) - float(value))
        for sample, answer in both
        for each, value in zip(sample["resps"], answer.responses, strict=True)
    ]
    return {
        "documents": len(both),
        "log_likelihoods": len(apart),
        "largest_difference": max(apart),
        "scored_differently": sum(sample["acc"] != answer.scores["acc"] for sample, answer in both),
        "accuracy": sum(answer.scores["acc"] for answer in ours) / len(ours),
    }


if __name__ == "__main__":
    raise SystemExit(main())
