"""Divergence from the baseline of several recipes on several trained models.

    python benchmarks/quality.py --data ../shared/data --json benchmarks/results/quality.json

DATA holds models/ and text/ (see docs/benchmarks.md). Calibrated recipes see a text that the evaluation text has no
part in: training stories for the TinyStories models, web text for the book model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

import llmquant
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.memory import Section as Memory
from llmquant.eval.metrics.perplexity import Section as Perplexity

STORIES = ("text/tinystories.train1000.json", "text/tinystories.valid.txt")
BOOKS = ("text/c4.sample.txt", "text/gutenberg.valid.txt")
MODELS = {"stories260K": STORIES, "babyllama-361": STORIES, "llama2xs": STORIES, "gutenberg-llama-4m": BOOKS}
RECIPES = (
    "int8", "mixed-int4-int8", "int4-g32", "int4-g32-gptq", "int4-g128", "int4-g128-gptq", "int3-g32", "int3-g32-gptq",
)  # fmt: skip
WINDOWS, LENGTH = 64, 256


def measure(data: Path, model: str, recipe: str, work: Path) -> dict[str, Any]:
    """Quantize and evaluate one pair."""
    calibration, text = (str(data / name) for name in MODELS[model])
    source, out = data / "models" / model, work / f"{model}-{recipe}"
    run = llmquant.quantize(
        source, recipe, out, calibration=calibration if recipe.endswith("gptq") else None, overwrite=True
    )
    report = llmquant.evaluate(out, source, text=text, length=LENGTH, max_windows=WINDOWS, speed=0)
    divergence, perplexity = report[Divergence], report[Perplexity]
    return {
        "model": model,
        "recipe": recipe,
        "bits_per_weight": report[Memory].quantized.bits_per_weight,
        "perplexity_baseline": perplexity.baseline.value,
        "perplexity": perplexity.quantized.value,
        "kl": divergence.kl.mean,
        "kl_low": divergence.kl.low,
        "kl_high": divergence.kl.high,
        "top1_agreement": divergence.top1_agreement.value,
        "log_perplexity_difference": [perplexity.log_difference.low, perplexity.log_difference.high],
        "tokens": divergence.tokens,
        "data_hash": report.protocol.data_hash,
        "calibration_hash": run.provenance["calibration"] and run.provenance["calibration"]["sha256"],
        "seconds": run.provenance["seconds"],
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="divergence of recipes on trained models")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    args = parser.parse_args()
    disable_progress_bar()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for model in args.models:
            for recipe in args.recipes:
                rows.append(measure(args.data, model, recipe, Path(work)))
                row = rows[-1]
                print(
                    f"{model:20} {recipe:16} {row['bits_per_weight']:6.2f} bits  ppl {row['perplexity']:8.3f}  "
                    f"KL {row['kl']:.5f} [{row['kl_low']:.5f}, {row['kl_high']:.5f}]  {row['seconds']:.1f} s",
                    flush=True,
                )
    if args.json:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        facts = {
            "rows": rows, "windows": WINDOWS, "length": LENGTH, "commit": commit, "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "python": platform.python_version(),
            "versions": {name: version(name) for name in ("torch", "transformers", "llmquant")},
        }  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
