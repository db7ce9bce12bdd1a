"""The Python interface: plan, quantize, evaluate. Loading is in `llmquant.hf`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant.data.text import read_documents
from llmquant.device import resolve_device
from llmquant.engine.output.folder import identity, is_finished, read_provenance
from llmquant.engine.prepare import load_tokenizer, plan_only, prepare
from llmquant.engine.run import RunResult, run
from llmquant.errors import RecipeError
from llmquant.eval import EvalOptions, EvalReport, Pair, Subject, make_windows
from llmquant.eval import evaluate as measure
from llmquant.eval.pair import Facts
from llmquant.models.skeleton import load_config
from llmquant.progress import Progress
from llmquant.recipe.load import dump_recipe, load_recipe
from llmquant.recipe.schema import recipe_to_dict

if TYPE_CHECKING:
    from llmquant.recipe.plan import Plan
    from llmquant.recipe.schema import Recipe


def plan(
    source: str | Path, recipe: str | Path | Mapping[str, Any] | Recipe, *, trust_remote_code: bool = False
) -> Plan:
    """What each module of a model would become. Reads only the config: no weights, hardly any memory.

    `source` is a model folder, path to a config.json, or hub id; `recipe` a preset name, file, mapping, or `Recipe`.
    `trust_remote_code` runs code that comes with the checkpoint, if its architecture needs it.

    Raises:
        RecipeError: if the recipe is malformed.
        CheckpointError: if there is no such model, or it is quantized already.
        PlanError: if it does not fit the model; the message names every problem and its fix.
    """
    return plan_only(source, load_recipe(recipe), trust_remote_code=trust_remote_code)


def quantize(
    source: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    *,
    calibration: str | None = None,
    revision: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Quantize a checkpoint into a folder, one block at a time.

    The folder appears when it is complete and verified. Until then the work is in OUT.partial, and a run that was
    killed goes on with `resume=True`, to the same bytes.

    Args:
        source: model folder or hub id, with 16- or 32-bit safetensors.
        recipe: preset name, file, mapping, or `Recipe`.
        out: the new folder.
        calibration: a text file or data set (see `Calibration.dataset`) in place of the one that the recipe names.
        revision: branch, tag or commit of a hub id.
        resume: continue an interrupted run.
        overwrite: replace a finished result, or drop an interrupted run.
        device: that does the work: "auto" (cuda, xpu or mps where there is one, else the CPU), "cuda:1", "cpu".
        trust_remote_code: run code that comes with the checkpoint, if its architecture needs it, and copy it.
        progress: is told what happens.

    Raises:
        LlmquantError: RecipeError, PlanError, CheckpointError, DataError, DeviceError, QuantizationError or
            OutputError; nothing that was there before is lost.
    """
    loaded = load_recipe(recipe)
    if calibration is not None:
        loaded = _with_calibration(loaded, calibration)
    prepared = prepare(source, loaded, revision=revision, trust_remote_code=trust_remote_code)
    return run(prepared, Path(out), resume=resume, overwrite=overwrite, device=device, progress=progress)


def _with_calibration(recipe: Recipe, dataset: str) -> Recipe:
    """The recipe with another calibration text, checked like a file's."""
    data = recipe_to_dict(recipe)
    if "calibration" not in data:
        raise RecipeError(f"recipe {recipe.name!r} uses no calibration text, so {dataset!r} would be ignored; drop it")
    return load_recipe({**data, "calibration": {**data["calibration"], "dataset": dataset}})


def evaluate(
    model: str | Path,
    baseline: str | Path,
    options: EvalOptions | None = None,
    *,
    speed: float | None = None,
    noise_floor: bool | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> EvalReport:
    """Measure a quantized model (folder or hub id) against the one it was made from, with its tokenizer.

    Args:
        speed: seconds to spend on prefill and decode throughput (20); 0 leaves it out.
        noise_floor: where losses are measured in 16 bits, also measure how much of them is rounding.
        changes: fields of `EvalOptions` in place of those of `options`: text, length, stride, max_windows, dtype,
            device, accuracy, kernel, budget, metrics, trust_remote_code and so on.

    Raises:
        LlmquantError: CheckpointError, DataError, DeviceError or RecipeError.
    """
    from llmquant.compat.loading import no_progress_bar
    from llmquant.data.calibration import check_vocabulary
    from llmquant.eval.precision import loading_for
    from llmquant.hf.load import load

    options = replace(options or EvalOptions(), **changes)
    asked = {} if speed is None else {"speed": {"seconds": speed} if speed else False}
    asked |= {} if noise_floor is None else {"noise_floor": noise_floor}
    options = replace(options, metrics={**options.metrics, **asked})
    device = resolve_device(options.device)
    facts = _facts(model, baseline, options)
    dtype = "auto" if options.dtype == "checkpoint" else options.dtype
    where = None if device.type == "cpu" else {"": str(device)}
    progress = progress or Progress()
    models = []
    with no_progress_bar(), loading_for(options.kernel):
        progress.stage("load", 2, unit="models")
        for folder in (facts.subject.baseline_folder, facts.subject.folder):
            assert folder is not None
            models.append(load(folder, dtype=dtype, device_map=where, trust_remote_code=options.trust_remote_code))
            progress.step()
    check_vocabulary(facts.windows.ids, models[0])
    return measure(Pair(**vars(facts), baseline=models[0], quantized=models[1], progress=progress))


def _facts(model: str | Path, baseline: str | Path, options: EvalOptions) -> Facts:
    """Refuse whatever can be refused without the models."""
    from llmquant.data.calibration import context_limit
    from llmquant.hf.load import open_model

    trust = options.trust_remote_code
    before, after = (open_model(source, trust_remote_code=trust).folder for source in (baseline, model))
    subject = _subject(after, before, names=(Path(model).name, Path(baseline).name))
    documents = read_documents(options.text, split="eval" if options.text.startswith("builtin:") else "test")
    tokenizer = load_tokenizer(before, trust_remote_code=trust)
    windows = make_windows(
        documents, tokenizer, source=options.text, length=options.length, stride=options.stride,
        max_windows=options.max_windows, context=context_limit(load_config(before, trust_remote_code=trust)),
    )  # fmt: skip
    facts = Facts(subject=subject, windows=windows, tokenizer=tokenizer, options=options)
    facts.check()
    return facts


def _subject(folder: Path, baseline: Path, *, names: tuple[str, str]) -> Subject:
    subject = Subject(name=names[0], baseline_name=names[1], folder=folder, baseline_folder=baseline)
    if not is_finished(folder):  # another tool's checkpoint: nothing is known of how it was made
        return subject
    made = read_provenance(folder)
    recipe = load_recipe(made["recipe"])
    return replace(
        subject,
        name=recipe.name,
        limits=recipe.budget.model_dump() if recipe.budget else {},
        made=made,
        baseline_made=read_provenance(baseline) if is_finished(baseline) else None,
        recipe_yaml=dump_recipe(recipe),
        checkpoint=identity(made),
    )
