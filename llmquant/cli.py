"""The command line: thin, one function for each verb."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.errors import LlmquantError

if TYPE_CHECKING:
    from rich.console import Console

    from llmquant.layers.accuracy import Accuracy


_WIDTH_OF_FILES = 120  # rich would take 80 columns where there is no terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error, 2 for a budget that is not met."""
    args = _parser().parse_args(arguments)
    from rich.console import Console
    from rich.markup import escape

    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES)
    try:
        return args.run(args, console)
    except (LlmquantError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; --resume continues a quantization")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmquant", description="Weight quantization for Hugging Face causal LMs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    plan = commands.add_parser("plan", help="what each tensor would become, before any work")
    _model_and_recipe(plan)
    plan.add_argument("--full", action="store_true", help="one line for each module, not for each kind")
    plan.add_argument("--json", type=Path, metavar="FILE", help="write the plan as JSON")
    plan.set_defaults(run=_plan)

    quantize = commands.add_parser("quantize", help="quantize a checkpoint into a folder")
    _model_and_recipe(quantize)
    quantize.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the new folder")
    quantize.add_argument("--resume", action="store_true", help="continue an interrupted run")
    quantize.add_argument(
        "--overwrite", action="store_true", help="replace a finished result or drop an interrupted run"
    )
    quantize.add_argument("--calibration", metavar="TEXT", help="calibrate on this file or hub:NAME instead")
    quantize.add_argument("--revision", help="branch, tag or commit of a hub model")
    quantize.set_defaults(run=_quantize)

    _evaluate_arguments(commands.add_parser("eval", help="measure a quantized model against its baseline"))
    _bench_arguments(commands.add_parser("bench", help="speed and memory of a model in several formats, side by side"))

    demo = commands.add_parser("demo", help="quantize and evaluate the bundled model, write report.html")
    demo.add_argument("--out", type=Path, default=Path("demo-output"), metavar="DIR", help="working folder")
    demo.add_argument("--report", type=Path, default=Path("report.html"), metavar="FILE")
    demo.set_defaults(run=_demo)

    doctor = commands.add_parser("doctor", help="what this machine has, how fast it can be, and what to improve")
    doctor.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON, to FILE or instead of the text")
    doctor.set_defaults(run=_doctor)

    recipes = commands.add_parser("recipes", help="the recipes that ship with llmquant")
    recipes.add_argument("name", nargs="?", help="print this one")
    recipes.set_defaults(run=_recipes)
    return parser


def _evaluate_arguments(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("model", metavar="OUT", help="the quantized folder")
    evaluate.add_argument("--baseline", required=True, metavar="MODEL", help="the model it was made from")
    evaluate.add_argument("--text", default="builtin:python", help="a .txt, .jsonl or .json file, or hub:NAME")
    evaluate.add_argument("--length", type=int, help="tokens in a window (512, or the model's context)")
    evaluate.add_argument("--stride", type=int, help="tokens between windows (no overlap)")
    evaluate.add_argument("--max-windows", type=int, help="use only the first windows")
    evaluate.add_argument("--dtype", default="auto", help="compute dtype of both models (that of the checkpoint)")
    evaluate.add_argument("--speed", type=float, default=20, metavar="S", help="seconds for throughput (20; 0: none)")
    evaluate.add_argument("--noise-floor", action="store_true", help="measure the baseline against itself in float32")
    evaluate.add_argument(
        "--accuracy", choices=("exact", "fast"), default="exact", help="CPU kernels' accuracy while losses are measured"
    )
    evaluate.add_argument("--kernel", choices=("reference",), help="plain torch in place of the fast kernels")
    evaluate.add_argument(
        "--budget", action="append", default=[], metavar="NAME=VALUE", help="a limit, such as kl=0.03"
    )
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write all numbers as JSON")
    evaluate.add_argument("--report", type=Path, metavar="FILE", help="write a self-contained HTML page")
    evaluate.set_defaults(run=_evaluate)


def _bench_arguments(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("model", metavar="MODEL", help="a 16- or 32-bit model, quantized in memory, or a quantized one")
    bench.add_argument("--baseline", metavar="MODEL", help="of a quantized model: the one it was made from")
    bench.add_argument("--dtypes", type=_words, metavar="A,B", help="of the dense model (fp32,bf16)")
    bench.add_argument("--schemes", type=_words, metavar="A,B", help="schemes, presets or recipes (int8,int4-g128)")
    bench.add_argument(
        "--accuracy", choices=("exact", "fast", "both"), default="both", help="of the CPU kernels (both)"
    )
    bench.add_argument("--prompt", type=int, default=128, metavar="N", help="tokens of the prompt (128)")
    bench.add_argument("--new", type=int, default=32, metavar="N", help="tokens decoded one by one (32)")
    bench.add_argument("--batch", type=int, default=1, metavar="N", help="sequences at once (1)")
    bench.add_argument("--threads", type=int, metavar="N", help="threads of torch (as they are)")
    bench.add_argument("--seconds", type=float, default=20, metavar="S", help="time for all rounds; 3 at least (20)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write all numbers as JSON")
    bench.add_argument("--tune", action="store_true", help="instead, find and keep the fastest kernels for this GPU")
    bench.set_defaults(run=_bench)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _model_and_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model folder, config.json (plan only) or hub id")
    parser.add_argument("-r", "--recipe", required=True, help="preset name or YAML file")


def _check_targets(*files: Path | None) -> None:
    """Refuse before any work what could not be written after it."""
    from llmquant.errors import OutputError

    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            raise OutputError(f"{file} cannot be written: there is no folder {file.absolute().parent}")


def _plan(args: argparse.Namespace, console: Console) -> int:
    _check_targets(args.json)
    from llmquant.api import plan
    from llmquant.plan_view import print_plan

    result = plan(args.model, args.recipe)
    print_plan(console, result, full=args.full)
    if args.json:
        args.json.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    return 0


def _quantize(args: argparse.Namespace, console: Console) -> int:
    from llmquant.api import quantize
    from llmquant.console import RunDisplay, print_result

    with RunDisplay(console) as display:
        result = quantize(
            args.model, args.recipe, args.out,
            calibration=args.calibration, revision=args.revision, resume=args.resume, overwrite=args.overwrite,
            progress=display,
        )  # fmt: skip
    print_result(console, result)
    return 0


def _evaluate(args: argparse.Namespace, console: Console) -> int:
    _check_targets(args.json, args.report)
    from llmquant.api import evaluate
    from llmquant.console import RunDisplay, print_reports
    from llmquant.eval.report import render_page

    with RunDisplay(console) as display:
        report = evaluate(
            args.model, args.baseline, text=args.text, length=args.length, stride=args.stride,
            max_windows=args.max_windows, dtype=args.dtype, speed=args.speed, noise_floor=args.noise_floor,
            accuracy=args.accuracy, kernel=args.kernel, budget=_limits(args.budget), progress=display.stages,
        )  # fmt: skip
    print_reports(console, [report])
    if args.json:
        args.json.write_text(report.to_json(), encoding="utf-8")
    if args.report:
        args.report.write_text(render_page([report]), encoding="utf-8")
    return 0 if report.budget_passed else 2


def _limits(words: Sequence[str]) -> dict[str, float]:
    from llmquant.errors import RecipeError

    limits = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            limits[name] = float(value)
        except ValueError as error:
            raise RecipeError(f"--budget {word}: wanted NAME=NUMBER, such as kl=0.03") from error
    return limits


def _bench(args: argparse.Namespace, console: Console) -> int:
    _check_targets(args.json)
    if args.tune:
        return _tune(args, console)
    from llmquant.bench import bench_model
    from llmquant.bench_view import print_bench
    from llmquant.console import RunDisplay
    from llmquant.eval.throughput import ThroughputOptions

    options = ThroughputOptions(
        prompt_tokens=args.prompt, decode_tokens=args.new, batch_size=args.batch, seconds=args.seconds
    )
    with RunDisplay(console) as display:
        report = bench_model(
            args.model, baseline=args.baseline, dtypes=args.dtypes, schemes=args.schemes, options=options,
            accuracies=_accuracies(args), threads=args.threads, progress=display.stages,
        )  # fmt: skip
    print_bench(console, report)
    if args.json:
        args.json.write_text(report.to_json(), encoding="utf-8")
    return 0


def _tune(args: argparse.Namespace, console: Console) -> int:
    from llmquant.bench_tune import tune_model
    from llmquant.bench_view import print_tuned
    from llmquant.console import RunDisplay

    with RunDisplay(console) as display:
        report = tune_model(args.model, schemes=args.schemes, accuracies=_accuracies(args), progress=display.stages)
    print_tuned(console, report)
    if args.json:
        args.json.write_text(report.to_json(), encoding="utf-8")
    return 0


def _accuracies(args: argparse.Namespace) -> Sequence[Accuracy]:
    return ("exact", "fast") if args.accuracy == "both" else (args.accuracy,)


def _demo(args: argparse.Namespace, console: Console) -> int:
    _check_targets(args.report)
    from llmquant.demo import demo

    demo(args.out, args.report, console)
    return 0


def _doctor(args: argparse.Namespace, console: Console) -> int:
    from llmquant.doctor import diagnose
    from llmquant.doctor.view import print_diagnosis

    to_file = args.json not in (None, "-")
    _check_targets(Path(args.json) if to_file else None)
    found = diagnose()
    text = json.dumps(found.to_dict(), indent=2) + "\n"
    if args.json == "-":
        sys.stdout.write(text)
    else:
        print_diagnosis(console, found)
    if to_file:
        Path(args.json).write_text(text, encoding="utf-8")
    return 1 if found.broken else 0


def _recipes(args: argparse.Namespace, console: Console) -> int:
    from rich.table import Table

    from llmquant.recipe.load import load_recipe, preset_names, preset_text

    if args.name:
        sys.stdout.write(preset_text(args.name))
        return 0
    table = Table(box=None)
    table.add_column("recipe", style="bold")
    table.add_column("what it does")
    for name in preset_names():
        table.add_row(name, load_recipe(name).description)
    console.print(table)
    return 0
