"""Quantizing a model object that somebody has loaded, in place or into a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from llmquant.compat.remote_code import runs_remote_code
from llmquant.engine.output.folder import OutputFolder
from llmquant.engine.prepare import Prepared, prepare, refuse_qat, small_files
from llmquant.errors import CheckpointError, RecipeError
from llmquant.formats.safetensors_file import copy_file
from llmquant.hf.qat import fake_layers
from llmquant.hf.recipe import RecipeConfig, RecipeQuantizer, source_of
from llmquant.models.checkpoint import refuse_quantized
from llmquant.models.config_file import leads_outside
from llmquant.models.hub import locate
from llmquant.nn.counting import is_packed
from llmquant.progress import Progress
from llmquant.recipe.schema import Recipe


def check_model(model: object) -> PreTrainedModel:
    """Refuse what is no dense, complete model in evaluation mode.

    Raises:
        CheckpointError: says what it is instead, and what to do.
    """
    if not isinstance(model, PreTrainedModel):
        advice = "; merge the adapter first: model.merge_and_unload()" if hasattr(model, "merge_and_unload") else ""
        raise CheckpointError(
            f"wanted a model folder, a hub id or a transformers model, got {type(model).__name__}{advice}"
        )
    name = f"this {type(model).__name__}"
    if is_packed(model):
        raise CheckpointError(f"{name}: is already quantized; give the 16-bit model that it was made from")
    if fake_layers(model):
        raise CheckpointError(f"{name} is prepared for training; llmquant.convert_qat(model) packs it")
    refuse_quantized(name, getattr(model.config, "quantization_config", None))
    layers = [type(module).__module__.partition(".")[0] for module in model.modules()]
    if "peft" in layers:
        raise CheckpointError(f"{name} has adapters of peft; merge them into its weights, or remove them")
    away = [key for key, parameter in model.named_parameters() if parameter.is_meta]
    if away:
        raise CheckpointError(
            f"{name} holds no weights for {away[0]} and {len(away) - 1} more (on the meta device, or offloaded); load "
            "it whole, or give its folder or hub id: llmquant.quantize(source, recipe, out) needs memory for one block"
        )
    if len({parameter.device for parameter in model.parameters()}) > 1:
        raise CheckpointError(f"{name} is spread over several devices; load it on one, or give its folder or hub id")
    if model.training:
        raise CheckpointError(f"{name} is in training mode, where dropout is active; call model.eval() first")
    return model


def quantize_in_place(
    model: PreTrainedModel,
    recipe: Recipe,
    *,
    tokenizer: Any = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> PreTrainedModel:
    """Replace the weights of a dense model by packed ones, those that `from_pretrained` with a `RecipeConfig` gives.

    Errors leave the model as it was. `tokenizer` is for calibration; by default the one beside the model's source.

    Raises:
        LlmquantError: as `check_model` and `RecipeConfig`.
    """
    config = RecipeConfig(refuse_qat(recipe), tokenizer=tokenizer, device=device)
    RecipeQuantizer(config, pre_quantized=False).quantize_loaded(check_model(model), progress)
    return model


def prepare_qat(
    model: PreTrainedModel,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    tokenizer: Any = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    kept: Path | None = None,
) -> PreTrainedModel:
    """Make the layers of a dense model trainable as they will be read once they are rounded, in place.

    The model is rounded as the recipe says, by GPTQ for instance, and starts from there: its first forward is that of
    the rounded model. `convert_qat` packs it after training. Train it like any other model, best in float32 (with
    autocast, `TrainingArguments(bf16=True)`); weights of rounded layers are trained in float32 in any case.

    Args:
        model: in evaluation mode, as `from_pretrained` returns it.
        recipe: with a section `qat`: a preset such as "qat-int4-g32", a file, a mapping or a `Recipe`.
        tokenizer: for recipes that need calibration data; by default the one beside the model's source.
        device: that does the rounding.
        dtype: in which scales will be stored; by default the model's.
        progress: is told what happens.
        kept: a folder for what rounding makes of each block, for this model and recipe only: blocks that are there
            already are not rounded again. By default nothing is kept.

    Raises:
        RecipeError: if the recipe is malformed, or has no section `qat`.
        LlmquantError: as `llmquant.quantize` of a model object; the model is as it was.
    """
    config = RecipeConfig(recipe, tokenizer=tokenizer, device=device)
    if config.recipe.qat is None:
        raise RecipeError(f"recipe {config.recipe.name!r} does not train: give it a section `qat: {{ranges: lsq}}`")
    RecipeQuantizer(config, pre_quantized=False).quantize_loaded(check_model(model), progress, dtype, kept)
    return model


@contextmanager
def prepared_model(
    model: PreTrainedModel, recipe: Recipe, out: Path, *, tokenizer: Any, resume: bool, overwrite: bool
) -> Iterator[Prepared]:
    """A model object as a run takes it: saved into a temporary folder beside `out`, which is gone afterwards.

    Raises:
        LlmquantError: as `check_model`, `prepare` and, of `out`, `OutputFolder.check`.
    """
    check_model(model)
    OutputFolder(out).check(resume=resume, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{out.name}.dense-", dir=out.parent) as name:
        folder = Path(name)
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        else:
            copy_tokenizer(model, folder)
        prepared = prepare(folder, recipe, trust_remote_code=runs_remote_code(model))
        yield replace(prepared, source=source_of(model))


def copy_tokenizer(model: PreTrainedModel, folder: Path) -> bool:
    """Copy what lies beside the weights where a model came from; whether a tokenizer was among it."""
    try:
        source = locate(str(model.name_or_path or ""))
    except CheckpointError:
        return False
    there = {path.name for path in folder.iterdir()}
    found = [path for path in small_files(source, code=runs_remote_code(model)) if path.name not in there]
    for path in found:
        if not leads_outside(path):
            copy_file(path, folder / path.name)
    return any("token" in path.name for path in found)
