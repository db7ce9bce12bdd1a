"""The Python interface: plan, quantize, evaluate. Loading is in `llmquant.hf`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from llmquant.compare import compare, write_reports
from llmquant.engine.prepare import plan_only, prepare
from llmquant.engine.run import RunResult, run
from llmquant.errors import DataError, OutputError, RecipeError
from llmquant.eval import EvalOptions, EvalReport
from llmquant.models.hub import locate
from llmquant.progress import Progress
from llmquant.recipe.load import load_recipe, with_calibration
from llmquant.words import did_you_mean, listed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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


@overload
def quantize(
    source: PreTrainedModel, recipe: str | Path | Mapping[str, Any] | Recipe, out: None = None, **more: Any
) -> PreTrainedModel: ...
@overload
def quantize(
    source: str | Path | PreTrainedModel, recipe: str | Path | Mapping[str, Any] | Recipe, out: str | Path, **more: Any
) -> RunResult: ...
def quantize(  # pyright: ignore[reportInconsistentOverload]  # **more stands for the keywords below
    source: str | Path | PreTrainedModel,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path | None = None,
    *,
    tokenizer: Any = None,
    calibration: str | None = None,
    revision: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> RunResult | PreTrainedModel:
    """Quantize a checkpoint into a folder, one block at a time; or a model that is loaded already.

        llmquant.quantize("org/model", "int4-g128", "out")         # a folder; a finished run is returned
        llmquant.quantize(model, "int4-g128")                      # the same object, packed in place
        llmquant.quantize(model, "int4-g128-balanced", tokenizer=tok)  # a recipe with calibration
        llmquant.quantize(model, "int4-g128", "out")               # a folder; the model stays as it is

    The folder appears when it is complete and verified. Until then the work is in OUT.partial, and a run that was
    killed goes on with `resume=True`, to the same bytes. A model object is in evaluation mode, whole and on one device;
    in memory its result is that of `from_pretrained` with a `RecipeConfig`, and an error leaves the model as it was.
    A recipe whose section `qat` names its text is trained on it, which takes the whole model in memory.

    Args:
        source: model folder or hub id, with 16- or 32-bit safetensors; or a transformers model.
        recipe: preset name, file, mapping, or `Recipe`.
        out: the new folder; may be left out for a model object.
        tokenizer: of a model object; by default the one in the folder that it was loaded from, or its hub id's.
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
        loaded = with_calibration(loaded, calibration)
    if not isinstance(source, (str, Path)):
        if revision is not None or trust_remote_code:
            raise RecipeError(
                "revision and trust_remote_code are for folders and hub ids; this model is loaded already"
            )
        if out is None and (resume or overwrite):
            raise RecipeError("resume and overwrite are for a folder; name it, or leave them out")
        return _quantize_object(
            source, loaded, None if out is None else Path(out), tokenizer=tokenizer, resume=resume,
            overwrite=overwrite, device=device, progress=progress,
        )  # fmt: skip
    if out is None:
        raise OutputError(
            f"name the new folder: llmquant.quantize({str(source)!r}, recipe, out); without one, quantize a model that "
            "is loaded, or load it with quantization_config=llmquant.RecipeConfig(recipe)"
        )
    if tokenizer is not None:
        raise RecipeError(f"tokenizer is for a model that is loaded; {source} has its own")
    if loaded.training_text is not None:
        from llmquant.training.run import qat

        folder = source if revision is None else locate(source, revision=revision, code=trust_remote_code)
        return qat(
            folder, loaded, None, out,
            resume=resume, overwrite=overwrite, device=device, trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip
    prepared = prepare(source, loaded, revision=revision, trust_remote_code=trust_remote_code)
    return run(prepared, Path(out), resume=resume, overwrite=overwrite, device=device, progress=progress)


def _quantize_object(
    model: PreTrainedModel, recipe: Recipe, out: Path | None, *, tokenizer: Any, resume: bool, overwrite: bool,
    device: str, progress: Progress | None,
) -> RunResult | PreTrainedModel:  # fmt: skip
    from llmquant.hf.in_place import prepared_model, quantize_in_place

    if out is None:
        return quantize_in_place(model, recipe, tokenizer=tokenizer, device=device, progress=progress)
    with prepared_model(model, recipe, out, tokenizer=tokenizer, resume=resume, overwrite=overwrite) as prepared:
        return run(prepared, out, resume=resume, overwrite=overwrite, device=device, progress=progress)


@overload
def evaluate(
    models: str | Path, baseline: str | Path | None = None, options: EvalOptions | None = None, **more: Any
) -> EvalReport: ...
@overload
def evaluate(
    models: Sequence[str | Path], baseline: str | Path | None = None, options: EvalOptions | None = None, **more: Any
) -> tuple[EvalReport, ...]: ...
def evaluate(
    models: str | Path | Sequence[str | Path],
    baseline: str | Path | None = None,
    options: EvalOptions | None = None,
    *,
    speed: float | None = None,
    noise_floor: bool | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> EvalReport | tuple[EvalReport, ...]:
    """Measure a quantized model (folder or hub id), or several, against the one they were made from.

    Several are compared on the same tokens (by the baseline's tokenizer): the baseline runs over the text once, or
    once for each group of candidates that fits into memory beside it. Reports are called by the recipes; candidates of
    one recipe by their folders. Without a baseline there is perplexity, size and speed of each, and nothing compared.

    Args:
        speed: seconds to spend on prefill and decode throughput (20); 0 leaves it out.
        noise_floor: where losses are measured in 16 bits, also measure how much of them is rounding.
        out: a folder for one JSON file per model and report.html, rewritten as results come. Finished parts are kept
            there: the same call goes on where a killed one was, and gives the same numbers.
        changes: fields of `EvalOptions` in place of those of `options`: protocol, text, length, bos, stride,
            max_windows, dtype, device, accuracy, kernel, budget, metrics, trust_remote_code and so on.

    Returns:
        A report; for a sequence of models a tuple of reports, in their order.

    Raises:
        LlmquantError: CheckpointError, DataError, DeviceError, OutputError or RecipeError.
    """
    known = [each.name for each in fields(EvalOptions)]
    if strange := [name for name in changes if name not in known]:
        hint = did_you_mean(strange[0], known) or f"; the options are {listed(known)}"
        raise DataError(f"llmquant.evaluate takes no {strange[0]!r}{hint}")
    options = replace(options or EvalOptions(), **changes)
    asked = {} if speed is None else {"speed": {"seconds": speed} if speed else False}
    asked |= {} if noise_floor is None else {"noise_floor": noise_floor}
    options = replace(options, metrics={**options.metrics, **asked})
    alone = isinstance(models, (str, Path))
    found: dict[int, EvalReport] = {}
    for place, report in compare(
        [models] if alone else models, baseline, options, progress, None if out is None else Path(out)
    ):
        found[place] = report
        if out is not None:
            write_reports(Path(out), [found[each] for each in sorted(found)])
    return found[0] if alone else tuple(found[each] for each in sorted(found))
