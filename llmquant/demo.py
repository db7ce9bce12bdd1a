"""The whole story on the bundled model: quantize by several recipes, evaluate, write one page. Needs no network."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from rich.console import Console

from llmquant.api import evaluate, quantize
from llmquant.console import print_reports
from llmquant.eval.report import render_page
from llmquant.eval.result import EvalReport
from llmquant.readable import shown
from llmquant.run_view import RunDisplay

RECIPES = ("int8", "int4-g32", "int4-g32-gptq", "int4-g128", "int4-g128-gptq")
_WINDOWS, _SPEED_SECONDS = 128, 5.0


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
                reports.append(
                    evaluate(
                        out / recipe,
                        model,
                        max_windows=_WINDOWS,
                        speed=_SPEED_SECONDS,
                        noise_floor=True,
                        progress=display.stages,
                    )
                )
            (out / f"{recipe}.json").write_text(reports[-1].to_json(), encoding="utf-8")
    page.write_text(render_page(reports), encoding="utf-8")
    print_reports(console, reports)
    console.print(
        f"\nThe report with all numbers: [bold]{shown(page)}[/]; the quantized models: [bold]{shown(out)}/[/]",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return reports
