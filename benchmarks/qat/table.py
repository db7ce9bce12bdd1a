"""What training gives beyond GPTQ, against the 16-bit model tuned on the same tokens.

    python benchmarks/qat/table.py MODEL --train FILE --text FILE --work FOLDER --json table.json
    python benchmarks/qat/table.py MODEL ... --schemes int3-g32 --ways scales-only lora --tokens 300000

For each scheme: GPTQ as `qat-SCHEME` starts from it (calibrated on the training text), then trained: scales alone,
weights and scales by the learning rates of that recipe, these with the cross entropy of the text in the loss too, a
low-rank change and scales. All are evaluated on the same windows of a text that nothing was trained on, against the
model as it was (KL) and against the model of 16 bits that was tuned on the same tokens by cross entropy (ln of the
ratio of perplexities). Finished folders in --work are used again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.utils.logging import disable_progress_bar

import llmquant
from llmquant.engine.output.folder import is_finished, read_provenance
from llmquant.engine.prepare import load_tokenizer
from llmquant.eval.metrics.divergence import Section as Divergence
from llmquant.eval.metrics.memory import Section as Memory
from llmquant.eval.metrics.perplexity import Section as Perplexity
from llmquant.kernels.bench.common.facts import facts, write_json
from llmquant.recipe.load import load_recipe
from llmquant.recipe.schema import recipe_to_dict
from llmquant.training.run import qat
from llmquant.training.text import load_rows

WAYS: dict[str, dict[str, Any]] = {
    "scales-only": {"ranges": "scales-only", "scale_learning_rate": 1e-3},
    "qat": {"ranges": "lsq"},
    "qat-mixed": {"ranges": "lsq", "loss": {"kl": 0.6, "cross_entropy": 0.4}},
    "lora": {"ranges": "lsq", "lora": {"rank": 16, "alpha": 32.0}, "learning_rate": 0.01},
}


def main() -> None:
    """Train, evaluate, write after each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--train", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--schemes", nargs="+", default=["int4-g32", "int3-g32", "int2-g32"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, help="to train on; by default all of the text once")
    parser.add_argument("--samples", type=int, default=64, help="windows of the calibration")
    parser.add_argument("--windows", type=int, default=64, help="of the evaluation")
    parser.add_argument("--untuned", action="store_true", help="without the 16-bit model tuned on the same tokens")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the section qat, for all ways")
    args = parser.parse_args()
    disable_progress_bar()
    rows: list[dict[str, Any]] = []
    tuned = None if args.untuned else dense_tuned(args)
    if tuned:
        rows.append({"way": "16 bits, tuned"} | measured(args, tuned, tuned))
    for scheme in args.schemes:
        for way, folder in results(args, scheme):
            rows.append({"scheme": scheme, "way": way} | cost(folder) | measured(args, folder, tuned))
            print(rows[-1], flush=True)
            write_json(args.json, {"model": args.model.name, **vars_of(args), **facts("cpu"), "rows": rows})


def vars_of(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked, without places of this machine."""
    found = {"train": Path(args.train).name, "text": Path(args.text).name}
    return found | {name: getattr(args, name) for name in ("length", "batch", "tokens", "samples", "windows", "set")}


def section(args: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """Of qat, with what was asked for."""
    given = dict(each.split("=", 1) for each in args.set)
    numbers = {key: float(value) if "." in value or "e" in value else int(value) for key, value in given.items()}
    found = {"batch": args.batch, "length": args.length, **numbers, **changes}
    return found | ({"steps": max(1, args.tokens // (args.batch * args.length))} if args.tokens else {})


def results(args: argparse.Namespace, scheme: str) -> Iterator[tuple[str, Path]]:
    """The folders of one scheme, each made if it is not there."""
    recipe = recipe_to_dict(load_recipe(f"qat-{scheme}"))
    seen = {"dataset": args.train, "samples": args.samples, "length": args.length, "seed": 0}
    recipe["calibration"] = seen
    trained = recipe.pop("qat")
    rounded = args.work / f"{scheme}-gptq"
    if not is_finished(rounded):
        llmquant.quantize(args.model, recipe, rounded, resume=True)
    yield "gptq", rounded
    for way in args.ways:
        out = args.work / f"{scheme}-{way}"
        if not is_finished(out):
            qat(args.model, recipe | {"qat": trained | section(args, **WAYS[way])}, args.train, out, resume=True)
        yield way, out


def dense_tuned(args: argparse.Namespace) -> Path:
    """The model of 16 bits after the same tokens, by cross entropy, at the rate that was best of three."""
    best = args.work / "tuned"
    if (best / "config.json").is_file():
        return best
    found = {rate: _tuned(args, rate) for rate in (1e-5, 5e-5, 2e-4)}
    _, model = min(found.values(), key=lambda each: each[0])
    dtype = AutoModelForCausalLM.from_pretrained(args.model).dtype
    model.to(dtype).save_pretrained(best)
    load_tokenizer(args.model).save_pretrained(best)
    return best


def _tuned(args: argparse.Namespace, rate: float) -> tuple[float, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    text = load_rows(args.train, None, load_tokenizer(args.model), length=args.length, context=None)
    steps = section(args).get("steps") or math.ceil(len(text.train) / args.batch)
    told = TrainingArguments(
        str(args.work / f"tuned-{rate}"), per_device_train_batch_size=args.batch, max_steps=steps, learning_rate=rate,
        lr_scheduler_type="cosine", warmup_steps=math.ceil(0.05 * steps), save_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True, prediction_loss_only=True,
    )  # fmt: skip
    trainer = Trainer(model, told, train_dataset=text.train, eval_dataset=text.valid)  # pyright: ignore[reportArgumentType]
    trainer.train()
    return trainer.evaluate()["eval_loss"], model


def measured(args: argparse.Namespace, folder: Path, tuned: Path | None) -> dict[str, Any]:
    """Against the model as it was, and against the tuned one if there is one; intervals of 95 %."""
    asked: dict[str, Any] = {
        "text": args.text, "length": args.length, "max_windows": args.windows, "speed": 0, "device": "cpu",
    }  # fmt: skip
    report = llmquant.evaluate(folder, args.model, **asked)
    kl, perplexity = report[Divergence].kl, report[Perplexity]
    found = {
        "bits_per_weight": report[Memory].quantized.bits_per_weight,
        "kl": [kl.mean, kl.low, kl.high],
        "perplexity": perplexity.quantized.value,
        "perplexity_before": perplexity.baseline.value if perplexity.baseline else None,
    }
    if tuned is None or folder == tuned:
        return found
    difference = llmquant.evaluate(folder, tuned, **asked)[Perplexity].log_difference
    assert difference is not None
    return found | {"ln_ratio_to_tuned": [difference.value, difference.low, difference.high]}


def cost(folder: Path) -> dict[str, Any]:
    """Seconds and memory, and how far it moved."""
    found = read_provenance(folder)
    training = found.get("training") or {}
    return {
        "seconds": found.get("seconds"),
        "peak_bytes": found.get("peak_memory_bytes"),
        **{name: training.get(name) for name in ("steps", "tokens", "loss_before", "loss_after", "best_step")},
    }


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s")
