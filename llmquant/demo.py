"""The whole story on the bundled model: quantize by several recipes, evaluate, write one page. Needs no network."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from rich.console import Console

from llmquant.api import evaluate, quantize
from llmquant.console import RunDisplay
from llmquant.eval.report import write_html
from llmquant.eval.result import EvalReport
from llmquant.eval.table import print_reports

RECIPES = ("int8", "int4-g32", "int4-g32-gptq", "int4-g128", "int4-g128-gptq")
_WINDOWS = 128


def demo(out: Path, page: Path, console: Console) -> list[EvalReport]:
    """Quantize and evaluate the bundled model.

    Args:
        out: working folder; each recipe's result lies in it.
        page: the HTML report.
        console: is printed to.

    Raises:
        LlmquantError: as `quantize` and `evaluate`.
    """
    with as_file(files("llmquant") / "demo_model") as model:
        reports = []
        for recipe in RECIPES:
            console.rule(f"[bold]{recipe}")
            with RunDisplay(console) as display:
                quantize(model, recipe, out / recipe, overwrite=True, progress=display)
            with RunDisplay(console) as display:
                reports.append(evaluate(out / recipe, model, max_windows=_WINDOWS, progress=display.stages))
            reports[-1].write_json(out / f"{recipe}.json")
    print_reports(console, reports)
    write_html(page, reports)
    console.print(f"\nThe report with all numbers: [bold]{page}[/]; the quantized models: [bold]{out}/[/]")
    return reports
