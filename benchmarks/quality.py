"""Divergence from the baseline of several recipes on several trained models, and of what they were calibrated on.

    python benchmarks/quality.py --data DATA --json benchmarks/results/quality.json
    python benchmarks/quality.py --data DATA --models smollm2-135m --recipes int4-g128-gptq --samples 64 --length 512 \\
        --windows 24 --calibration builtin:python builtin:mixed text/c4.sample.txt \\
        --text text/wiki.test.hfjoin.txt builtin:python --json benchmarks/results/calibration_text.json

DATA holds models/ and text/ (see docs/benchmarks.md). By default calibrated recipes see a text that the evaluation text
has no part in: training stories for the TinyStories models, web text for the others. Rows that the JSON has are not
measured again. SCHEME-absmax, which no preset is, is what others call round to nearest: scales from the largest weight;
SCHEME-gptq is SCHEME-balanced without its training, on as many windows (not the preset of that name, which has 128).
A closure is the share of what that loses (in ln of perplexity) which a recipe wins back.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

import llmquant
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.memory import Section as Memory
from llmquant.eval.metrics.perplexity import Section as Perplexity
from llmquant.kernels.bench.common.facts import facts, write_json
from llmquant.recipe.load import load_recipe
from llmquant.recipe.schema import Recipe, recipe_to_dict

Rows = Iterable[Mapping[str, Any]]
STORIES = ("text/tinystories.train1000.json", "text/tinystories.valid.txt")
BOOKS = ("text/c4.sample.txt", "text/gutenberg.valid.txt")
MODELS = {"stories260K": STORIES, "babyllama-361": STORIES, "llama2xs": STORIES, "gutenberg-llama-4m": BOOKS}
RECIPES = (
    "int8", "mixed-int4-int8",
    *(f"{scheme}-{how}" for scheme in ("int4-g32", "int4-g128", "int3-g32", "int2-g32")
      for how in ("absmax", "fast", "gptq", "balanced", "high")),
)  # fmt: skip


def recipe_called(name: str) -> Recipe:
    """A preset, a file, or for comparison a scheme with `-absmax` or `-gptq` behind it."""
    scheme, _, how = name.rpartition("-")
    if how == "absmax":
        recipe = recipe_to_dict(load_recipe(f"{scheme}-fast"))
        return load_recipe({**recipe, "name": name, "rounding": {"method": "rtn", "grid": "absmax"}})
    if how == "gptq":
        recipe = recipe_to_dict(load_recipe(f"{scheme}-balanced"))
        return load_recipe({**{key: value for key, value in recipe.items() if key != "tuning"}, "name": name})
    return load_recipe(name)


def measure(args: argparse.Namespace, model: str, name: str, work: Path, done: Rows) -> Iterator[dict[str, Any]]:
    """Quantize with each calibration text, and evaluate on each text."""
    seen, read = MODELS.get(model, BOOKS)
    source, recipe = args.data / "models" / model, recipe_called(name)
    for calibration in (args.calibration or [seen]) if recipe.calibration else [None]:
        if recipe.calibration and calibration:
            changes = {"dataset": place(args.data, calibration), "samples": args.samples or recipe.calibration.samples}
            recipe = recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update=changes)})
        texts = [text for text in args.text or [read] if not has(done, model, name, calibration, text)]
        if not texts:
            continue
        run = llmquant.quantize(source, recipe, work / "out", overwrite=True)
        for text in texts:
            report = llmquant.evaluate(
                run.folder, source, text=place(args.data, text), length=args.length, max_windows=args.windows, speed=0
            )
            divergence, perplexity = report[Divergence], report[Perplexity]
            yield {
                "model": model,
                "recipe": name,
                "calibration": calibration,
                "text": text,
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
                "peak_memory_bytes": run.provenance["peak_memory_bytes"],
                "closure": closure(done, model, name, text, perplexity.quantized.value / perplexity.baseline.value),
            }


def has(done: Rows, *key: str | None) -> bool:
    """Whether there is a row of this model, recipe, calibration and evaluation text."""
    return any(key == tuple(row[name] for name in ("model", "recipe", "calibration", "text")) for row in done)


def closure(done: Rows, model: str, recipe: str, text: str, ratio: float) -> float | None:
    """1 - ln(perplexity ratio) / that of SCHEME-absmax, if that was measured."""
    plain = f"{recipe.rpartition('-')[0]}-absmax"
    lost = [
        math.log(row["perplexity"] / row["perplexity_baseline"])
        for row in done
        if (row["model"], row["recipe"], row["text"]) == (model, plain, text)
    ]
    return 1 - math.log(ratio) / lost[0] if lost else None


def place(data: Path, text: str) -> str:
    """A text of llmquant's by its name, any other as a path in DATA."""
    return text if text.startswith("builtin:") else str(data / text)


def line(row: dict[str, Any]) -> str:
    """A row for people; too few windows have no interval."""
    interval = "" if row["kl_low"] is None else f" [{row['kl_low']:.5f}, {row['kl_high']:.5f}]"
    share = "" if row["closure"] is None else f"  closure {row['closure']:.3f}"
    texts = f"{row['text']}, calibrated on {row['calibration']}" if row["calibration"] else row["text"]
    return (
        f"{row['model']:20} {row['recipe']:18} {row['bits_per_weight']:6.2f} bits  ppl {row['perplexity']:8.3f}  "
        f"KL {row['kl']:.5f}{interval}{share}  {row['seconds']:.1f} s  {texts}"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--calibration", nargs="+", help="texts, each in turn")
    parser.add_argument("--samples", type=int, help="of the calibration text (as the recipe says)")
    parser.add_argument("--text", nargs="+", help="texts to evaluate on")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    args = parser.parse_args()
    disable_progress_bar()
    rows = json.loads(args.json.read_text())["rows"] if args.json and args.json.exists() else []
    result = facts("cpu") | {"windows": args.windows, "length": args.length, "rows": rows}
    with tempfile.TemporaryDirectory() as work:
        for model in args.models:
            for recipe in args.recipes:
                for row in measure(args, model, recipe, Path(work), rows):
                    rows.append(row)
                    if args.json:
                        write_json(args.json, result)
                    print(line(row), flush=True)


if __name__ == "__main__":
    main()
