"""The Python interface: plan, quantize, evaluate. Loading is in `llmquant.hf`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant.engine.prepare import plan_only, prepare
from llmquant.engine.progress import Progress
from llmquant.engine.run import RunResult, run
from llmquant.recipe.load import load_recipe

if TYPE_CHECKING:
    from llmquant.recipe.plan import Plan
    from llmquant.recipe.schema import Recipe


def plan(source: str | Path, recipe: str | Path | Mapping[str, Any] | Recipe) -> Plan:
    """What each module of a model would become. Reads only the config: no weights, hardly any memory.

    Args:
        source: model folder, path to a config.json, or hub id.
        recipe: preset name, file, mapping, or `Recipe`.

    Raises:
        RecipeError: if the recipe is malformed.
        PlanError: if it does not fit the model; the message names every problem and its fix.
    """
    return plan_only(source, load_recipe(recipe))


def quantize(
    source: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    *,
    revision: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Quantize a checkpoint into a folder, one block at a time.

    The folder appears when it is complete and verified. Until then the work is in OUT.partial, and a run that was
    killed goes on with `resume=True`, to the same bytes.

    Args:
        source: model folder or hub id, with 16- or 32-bit safetensors.
        recipe: preset name, file, mapping, or `Recipe`.
        out: the new folder.
        revision: branch, tag or commit of a hub id.
        resume: continue an interrupted run.
        overwrite: replace a finished result, or drop an interrupted run.
        progress: is told what happens.

    Raises:
        LlmquantError: RecipeError, PlanError, CheckpointError, DataError, QuantizationError or OutputError; nothing
            that was there before is lost.
    """
    prepared = prepare(source, load_recipe(recipe), revision=revision)
    return run(prepared, Path(out), resume=resume, overwrite=overwrite, progress=progress)
