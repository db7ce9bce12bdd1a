"""What evaluating three candidates costs over bare forward passes of the four models, in time and in memory.

    python benchmarks/eval_cost.py MODEL A B C --text FILE --windows 6 --rounds 3 --json eval_cost.json

In every round all four models run bare over the windows, in the batches and the dtype in which they are scored, then
they are scored: divergences, perplexities and agreement of every token. What else an evaluation does (memory,
intervals, worst tokens) hardly grows with the text, and is timed once ("rest_seconds"). Memory is the rise of the peak
over the models' weights (Linux), while they are scored; each token that is kept adds 72 bytes for each candidate.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import llmquant
from llmquant.compare import facts_of
from llmquant.eval import EvalOptions, evaluate
from llmquant.eval.pair import pairs
from llmquant.eval.scoring import batches, logits, score_tokens
from llmquant.machine import machine, versions
from llmquant.memory import peak_rss_of
from llmquant.progress import Progress


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="cost of an evaluation over bare forward passes")
    parser.add_argument("baseline", type=Path)
    parser.add_argument("candidates", type=Path, nargs="+")
    parser.add_argument("--text", required=True)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    options = EvalOptions(
        text=args.text, length=args.length, max_windows=args.windows, device="cpu", metrics={"speed": False}
    )
    facts = facts_of(args.candidates, args.baseline, options)
    models = [llmquant.load(folder) for folder in (args.baseline, *args.candidates)]
    baseline, *candidates = models
    comparison = pairs(facts, baseline, candidates)
    windows, first = facts[0].windows, comparison[0]

    def bare() -> None:
        with torch.inference_mode():
            for model in models:
                for _, ids, _ in batches(model, windows, None):
                    logits(model, ids)

    def scored() -> None:
        score_tokens(baseline, candidates, windows, Progress())

    with first.as_scored(*models):
        bare()  # the first pass of a process also pays for the libraries it loads
        peak = peak_rss_of(scored)
        rounds = [(_seconds(bare), _seconds(scored)) for _ in range(args.rounds)]
    together = _seconds(lambda: [evaluate(pair) for pair in comparison])
    ratios = [after / before for before, after in rounds]
    found = {
        "model": args.baseline.name, "candidates": [each.name for each in args.candidates],
        "windows": len(windows), "length": args.length, "vocabulary": baseline.config.get_text_config().vocab_size,
        "loss_dtype": first.loss.dtype, "threads": args.threads, "load": os.getloadavg()[0],
        "rounds": [{"bare_seconds": a, "scored_seconds": b, "ratio": b / a} for a, b in rounds],
        "median_ratio": statistics.median(ratios),
        "rest_seconds": together - statistics.median(after for _, after in rounds),
        "peak_over_weights_bytes": peak.rise_bytes,
        "machine": machine(torch.device("cpu")), "versions": versions(),
    }  # fmt: skip
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
