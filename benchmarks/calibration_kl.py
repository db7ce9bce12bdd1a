"""What the calibration text costs or gains: divergence on prose and on code of one recipe, calibrated on several texts.

    python benchmarks/calibration_kl.py --model smollm2-135m --data ../shared/data \\
        --json benchmarks/results/calibration_text.json

DATA holds text/ (see docs/benchmarks.md). "matched" is web text, as near to the prose as a calibration text can be that
evaluation has no part in.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import llmquant
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.perplexity import Section as Perplexity
from llmquant.recipe.load import load_recipe

EVALUATED = {"prose": "text/wiki.test.hfjoin.txt", "code": "builtin:python"}


def measure(args: argparse.Namespace, calibration: str, work: Path) -> list[dict[str, Any]]:
    """Quantize once, evaluate on each text."""
    source = {"matched": str(args.data / "text/c4.sample.txt")}.get(calibration, calibration)
    recipe = load_recipe(args.recipe)
    assert recipe.calibration is not None
    seen = recipe.calibration.model_copy(update={"dataset": source, "samples": args.samples, "length": args.length})
    out = work / calibration.replace(":", "-")
    llmquant.quantize(args.model, recipe.model_copy(update={"calibration": seen}), out, overwrite=True)
    rows = []
    for kind, name in EVALUATED.items():
        text = name if name.startswith("builtin:") else str(args.data / name)
        report = llmquant.evaluate(
            out, args.model, text=text, length=args.length, max_windows=args.windows, dtype="float32", speed=0
        )
        kl = report[Divergence].kl
        rows.append({"calibration": calibration, "text": kind, "kl": kl.mean, "kl_low": kl.low, "kl_high": kl.high,
                     "perplexity": report[Perplexity].quantized.value})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", default="int4-g128-gptq")
    parser.add_argument("--calibration", nargs="+", default=["builtin:python", "builtin:mixed", "matched"])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        rows = [row for one in args.calibration for row in measure(args, one, Path(work))]
    facts = {"torch": torch.__version__, "llmquant": version("llmquant"), "machine": platform.machine()}
    settings = {name: getattr(args, name) for name in ("recipe", "samples", "length", "windows")}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(
        json.dumps({"model": args.model.name, **settings, **facts, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
