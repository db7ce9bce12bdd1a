"""The Python interface: plan, quantize, evaluate. Loading is in `llmquant.hf`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmquant.data.text import read_documents
from llmquant.data.windows import Windows, make_windows
from llmquant.engine.output.folder import is_finished, read_provenance
from llmquant.engine.prepare import load_tokenizer, plan_only, prepare
from llmquant.engine.run import RunResult, run
from llmquant.errors import DataError, RecipeError
from llmquant.eval.budget import check_limits
from llmquant.eval.evaluate import Subject
from llmquant.eval.metrics.anatomy import anatomy_of, baseline_anatomy_of
from llmquant.eval.result import AnatomyPart, EvalReport
from llmquant.models.skeleton import load_config
from llmquant.progress import Progress
from llmquant.recipe.load import dump_recipe, load_recipe
from llmquant.recipe.schema import recipe_to_dict

if TYPE_CHECKING:
    from llmquant.eval.throughput import ThroughputOptions
    from llmquant.nn.accuracy import Accuracy
    from llmquant.recipe.plan import Plan
    from llmquant.recipe.schema import Recipe

EVAL_DTYPES = ("auto", "checkpoint", "float32", "bfloat16", "float16", "float64")


def plan(
    source: str | Path, recipe: str | Path | Mapping[str, Any] | Recipe, *, trust_remote_code: bool = False
) -> Plan:
    """What each module of a model would become. Reads only the config: no weights, hardly any memory.

    Args:
        source: model folder, path to a config.json, or hub id.
        recipe: preset name, file, mapping, or `Recipe`.
        trust_remote_code: run code that comes with the checkpoint, if its architecture needs it.

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
        trust_remote_code: run code that comes with the checkpoint, if its architecture needs it, and copy it to the
            result.
        progress: is told what happens.

    Raises:
        LlmquantError: RecipeError, PlanError, CheckpointError, DataError, DeviceError, QuantizationError or
            OutputError; nothing that was there before is lost.
    """
    loaded = load_recipe(recipe)
    if calibration is not None:
        loaded = with_calibration(loaded, calibration)
    prepared = prepare(source, loaded, revision=revision, trust_remote_code=trust_remote_code)
    return run(prepared, Path(out), resume=resume, overwrite=overwrite, device=device, progress=progress)


def with_calibration(recipe: Recipe, dataset: str) -> Recipe:
    """The recipe with another calibration text, checked like a file's.

    Raises:
        RecipeError: if the recipe needs no calibration, or the data set is malformed.
    """
    data = recipe_to_dict(recipe)
    if "calibration" not in data:
        raise RecipeError(f"recipe {recipe.name!r} uses no calibration text, so {dataset!r} would be ignored; drop it")
    return load_recipe({**data, "calibration": {**data["calibration"], "dataset": dataset}})


def evaluate(
    model: str | Path,
    baseline: str | Path,
    *,
    text: str = "builtin:python",
    length: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    dtype: str = "auto",
    speed: float = 20.0,
    noise_floor: bool = False,
    accuracy: Accuracy = "exact",
    kernel: Literal["reference"] | None = None,
    budget: Mapping[str, float | None] | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> EvalReport:
    """Measure a quantized model against its baseline on the same tokens.

    Args:
        model: the quantized folder, or hub id.
        baseline: the model it was made from; its tokenizer is used.
        text: a .txt, .jsonl or .json file, "hub:NAME", or the built-in text (the evaluation split).
        length: tokens in a window; 512, or the model's context where that is smaller.
        stride: text tokens from one window to the next; without it windows do not overlap.
        max_windows: use only the first windows.
        dtype: "auto" measures losses in float32 over the stored weights if that fits into memory, and speed in the
            dtype of the checkpoint, against the baseline in that dtype and in the fastest one. "checkpoint" measures
            losses as the models run by default. A name such as "float32" loads both models in that dtype for
            everything, which rounds scales anew where it is narrower.
        speed: seconds to spend on prefill and decode throughput; 0 leaves it out.
        noise_floor: where losses are measured in 16 bits, also measure how much of them is rounding.
        accuracy: of the CPU kernels while losses are measured: "exact", or "fast" to see what that mode costs. The
            speed is that of the model's own default.
        kernel: "reference" runs packed layers by plain torch, for comparison; slow.
        budget: limits by name (kl, perplexity_ratio, bits_per_weight); over those of the recipe.
        trust_remote_code: run code that comes with either checkpoint, if its architecture needs it.
        progress: is called with (stage, done, in all).

    Raises:
        LlmquantError: CheckpointError, DataError or RecipeError.
    """
    from llmquant.compat.loading import no_progress_bar
    from llmquant.data.calibration import check_vocabulary
    from llmquant.eval import evaluate as measure
    from llmquant.eval.kernels import loading_for
    from llmquant.hf.load import load

    if dtype not in EVAL_DTYPES:
        raise DataError(f"unknown dtype {dtype!r}; give one of {', '.join(EVAL_DTYPES)}")
    prepared = _prepare_evaluation(
        model, baseline, text, length, stride, max_windows, speed, budget or {}, trust_remote_code
    )
    told = progress or (lambda *_: None)
    models = []
    with no_progress_bar(), loading_for(kernel):
        for done, folder in enumerate((prepared.subject.baseline_folder, prepared.subject.folder)):
            assert folder is not None
            told("loading", done, 2)
            named = "auto" if dtype == "checkpoint" else dtype
            models.append(load(folder, dtype=named, trust_remote_code=trust_remote_code))
        told("loading", 2, 2)
    before, after = models
    check_vocabulary(prepared.windows.ids, before)
    return measure(
        before,
        after,
        prepared.windows,
        prepared.subject,
        tokenizer=prepared.tokenizer,
        throughput=prepared.throughput,
        loss_dtype="auto" if dtype == "auto" else "checkpoint",
        noise_floor=noise_floor,
        accuracy=accuracy,
        progress=progress,
    )


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """What an evaluation needs besides the models, all of it checked before they are loaded."""

    subject: Subject
    tokenizer: Any
    windows: Windows
    throughput: ThroughputOptions | None


def _prepare_evaluation(
    model: str | Path,
    baseline: str | Path,
    text: str,
    length: int | None,
    stride: int | None,
    max_windows: int | None,
    speed: float,
    budget: Mapping[str, float | None],
    trust: bool,
) -> _Evaluation:
    """Refuse whatever can be refused without the models."""
    from llmquant.data.calibration import context_limit
    from llmquant.eval.throughput import ThroughputOptions, check_prompt
    from llmquant.hf.load import open_model

    if not 0 <= speed < math.inf:
        raise DataError(f"{speed} seconds for the speed: give a number from 0 on (0 leaves the speed out)")
    check_limits(budget, sized=True)
    before, after = (open_model(source, trust_remote_code=trust).folder for source in (baseline, model))
    subject = _subject(after, before, budget, trust, names=(Path(model).name, Path(baseline).name))
    check_limits(subject.limits, sized=True)
    documents = read_documents(text, split="eval" if text.startswith("builtin:") else "test")
    tokenizer = load_tokenizer(before, trust_remote_code=trust)
    windows = make_windows(
        documents, tokenizer, source=text, length=length, stride=stride, max_windows=max_windows,
        context=context_limit(load_config(before, trust_remote_code=trust)),
    )  # fmt: skip
    throughput = ThroughputOptions(seconds=speed) if speed else None
    if throughput is not None:
        check_prompt(windows.ids.shape[1], throughput)
    return _Evaluation(subject, tokenizer, windows, throughput)


def _subject(
    folder: Path, baseline: Path, budget: Mapping[str, float | None], trust: bool, *, names: tuple[str, str]
) -> Subject:
    subject = Subject(name=names[0], baseline_name=names[1], folder=folder, baseline_folder=baseline, limits=budget)
    if not is_finished(folder):  # another tool's checkpoint: nothing is known of how it was made
        return subject
    facts = read_provenance(folder)
    recipe = load_recipe(facts["recipe"])
    made = plan_only(baseline, recipe, allow_quantized=True, trust_remote_code=trust)
    return replace(
        subject,
        name=recipe.name,
        limits={**(recipe.budget.model_dump() if recipe.budget else {}), **budget},
        anatomy=anatomy_of(made),
        anatomy_baseline=_baseline_anatomy(baseline, made, trust),
        layer_losses={name: layer["loss"] for name, layer in facts["layers"].items()},
        recipe_yaml=dump_recipe(recipe),
    )


def _baseline_anatomy(baseline: Path, made: Plan, trust: bool) -> tuple[AnatomyPart, ...]:
    """Bytes of the baseline, which may be quantized itself; none where only another tool knows how."""
    if is_finished(baseline):
        own = load_recipe(read_provenance(baseline)["recipe"])
        return anatomy_of(plan_only(baseline, own, allow_quantized=True, trust_remote_code=trust))
    if getattr(load_config(baseline, trust_remote_code=trust), "quantization_config", None):
        return ()
    return baseline_anatomy_of(made)
