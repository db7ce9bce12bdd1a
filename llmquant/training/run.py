"""`llmquant qat`: a model, a recipe and text become a finished folder, by way of transformers' `Trainer`.

The work is in OUT.partial, as that of `llmquant.quantize`: the checkpoints of the trainer in its folder `training`, the
packed model beside it. Several processes of a launcher train together; the first writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, Trainer, TrainingArguments

from llmquant.compat.loading import no_progress_bar
from llmquant.device import resolve_device
from llmquant.engine.output.folder import TRAINING, OutputFolder, is_finished, read_provenance
from llmquant.engine.run import RunResult, already_finished, surroundings
from llmquant.errors import CheckpointError, OutputError, QuantizationError, RecipeError
from llmquant.hf.in_place import prepare_qat
from llmquant.hf.qat import fake_layers
from llmquant.notebook import default_progress
from llmquant.progress import Progress
from llmquant.recipe.load import load_recipe, with_calibration
from llmquant.recipe.qat import Qat
from llmquant.recipe.schema import Recipe
from llmquant.training.arguments import (
    Options,
    check_count,
    processes,
    rank,
    steps_of,
    training_arguments,
)  # fmt: skip
from llmquant.training.checkpoints import last_checkpoint, load_weights, read_state, remove_torn
from llmquant.training.divergence import spoiled
from llmquant.training.inputs import Inputs, open_inputs
from llmquant.training.losses import distill
from llmquant.training.result import write_result
from llmquant.training.sharded import check_sharding, make_whole
from llmquant.training.text import Row
from llmquant.training.trainer import make_trainer

ROUNDED = "rounded"  # in the folder of checkpoints: what each block was before training


def qat(
    source: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    text: str | None,
    out: str | Path,
    *,
    valid: str | None = None,
    teacher: str | Path | None = None,
    calibration: str | None = None,
    steps: int | None = None,
    options: Options | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Round a checkpoint by a recipe, train it as it will be read, and write what was best on held-out text.

    The folder is one as `llmquant.quantize` writes it, with a section `training` in its llmquant.json. A run that was
    killed goes on with `resume=True` to the same bytes, on the same machine and number of threads.

    Args:
        source: model folder or hub id, with 16- or 32-bit safetensors.
        recipe: with a section `qat`: preset name, file, mapping, or `Recipe`.
        text: to train on: a file, "builtin:..." or "hub:..." (see `Calibration.dataset`); None takes the recipe's.
        out: the new folder.
        valid: text for validation; by default the end of `text` is held out.
        teacher: folder or hub id of the model whose outputs are aimed at; by default `source`.
        calibration: text to calibrate on in place of the recipe's.
        steps: in place of the recipe's.
        options: how much at once; see `Options`.
        resume: continue an interrupted run.
        overwrite: replace a finished result, or drop an interrupted run.
        device: that rounds and trains: "auto", "cpu", "cuda". Under a launcher each process takes its own.
        trust_remote_code: run code that comes with the checkpoint, if its architecture needs it.
        progress: is told what happens.

    Raises:
        LlmquantError: RecipeError, CheckpointError, DataError, DeviceError or OutputError; QuantizationError if
            training diverges, naming the layer, or the loss is no number from the start.
    """
    began, first = time.monotonic(), rank() == 0
    told = (progress or default_progress()) if first else Progress()
    options, where = options or Options(), resolve_device(device)
    check_sharding()
    loaded, section = _as_asked(load_recipe(recipe), steps, calibration)
    text = text or _own_text(loaded)
    with OutputFolder(Path(out)) as output, no_progress_bar():
        if first:
            output.check(resume=resume, overwrite=overwrite)
        run = open_inputs(source, loaded, section, text, valid, teacher, trust_remote_code=trust_remote_code)
        identity = {**surroundings(where), **run.identity, **asdict(options), "processes": processes()}
        if resume and is_finished(output.out) and not output.partial.exists():
            finished = already_finished(output, identity)
            told.note(f"{output.out} was finished by an earlier run, so there was nothing to do")
            return finished
        folder, total = output.partial / TRAINING, steps_of(section, len(run.text.train))
        args = training_arguments(section, options, folder, where, total)
        with args.main_process_first(local=False):
            if first:
                output.begin(identity, resume=resume, overwrite=overwrite)
                remove_torn(folder)
                output.require_space(_needed(run.model))
        model = _prepared(run, loaded, where, told, folder / ROUNDED)
        before = _loss(model, run.text.valid, args)
        _require_number(before, model, run)
        told.note(f"before training: loss {before:.4f} on held-out text")
        trainer = make_trainer(model, args, run.text, told)
        state = _train(trainer, folder)
        with args.main_process_first(local=False):
            if first:
                facts = run.facts(before, state, args.world_size)
                _load_best(run.model, folder, state, before, told)
                with _disk(output.partial):
                    write_result(run.model, run.dtype, output.partial, identity, facts, began)
                output.finish()
        if not is_finished(output.out):
            raise OutputError("the first process did not finish its work; its error says why")
        return RunResult(output.out, read_provenance(output.out))


def _as_asked(recipe: Recipe, steps: int | None, calibration: str | None) -> tuple[Recipe, Qat]:
    if recipe.qat is None:
        raise RecipeError(
            f"recipe {recipe.name!r} does not train: give it a section `qat: {{ranges: lsq}}`, or use llmquant quantize"
        )
    check_count("steps", steps)
    if steps is not None:
        section = recipe.qat.model_copy(update={"steps": steps})
        recipe = recipe.model_copy(update={"qat": section})
    if calibration is not None:
        recipe = with_calibration(recipe, calibration)
    assert recipe.qat is not None
    return recipe, recipe.qat


def _own_text(recipe: Recipe) -> str:
    if recipe.training_text is None:
        raise RecipeError(
            f"recipe {recipe.name!r} names no text to train on: give one (--train), or add `text: calibration` to qat"
        )
    return recipe.training_text


def _prepared(run: Inputs, recipe: Recipe, device: torch.device, progress: Progress, kept: Path) -> PreTrainedModel:
    model = run.model.float()
    prepare_qat(
        model, recipe, tokenizer=run.tokenizer, device=str(device), dtype=run.dtype, progress=progress, kept=kept
    )
    model.config.use_cache = False  # which only takes memory here
    if run.teacher is not None:
        distill(model, run.teacher, run.qat.loss)
    _see_inputs(model, run.text.train)
    return model


@torch.no_grad()
def _see_inputs(model: PreTrainedModel, rows: list[Row]) -> None:
    """Start the scales of inputs, of static schemes, from text."""
    if any(getattr(layer, "input_scale", None) is not None for layer in fake_layers(model).values()):
        model.train()
        for row in rows[:_SEEN]:
            model(row["input_ids"][None])
        model.eval()


_SEEN = 8


@torch.no_grad()
def _loss(model: PreTrainedModel, rows: list[Row], args: TrainingArguments) -> float:
    """Mean over rows, as the trainer measures it; after its own `evaluate` processes would no longer train as one."""
    model.to(args.device)  # pyright: ignore[reportArgumentType]
    with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
        losses = [model(**{name: value[None].to(args.device) for name, value in row.items()}).loss for row in rows]
    return float(torch.stack(losses).mean())


def _require_number(before: float, model: PreTrainedModel, run: Inputs) -> None:
    if math.isfinite(before):
        return
    for whose, each in (("model", model), ("teacher", run.teacher)):
        if each is not None and (what := spoiled(each)):
            raise CheckpointError(
                f"the loss before training is {before}: of the {whose}, {what}; repair its checkpoint"
            )
    raise QuantizationError(f"the loss before training is {before}, and there is no way down from it; see qat.loss")


def _needed(model: PreTrainedModel) -> int:
    """Bytes of three checkpoints, of weights and their two moments in float32, the most there are at a time."""
    return 3 * 3 * 4 * sum(parameter.numel() for parameter in model.parameters())


def _train(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Train from the last checkpoint on, if there is one; returns what the trainer noted."""
    last = last_checkpoint(folder)
    if last is None or read_state(last)["global_step"] < trainer.args.max_steps:
        with _disk(folder):
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        last = last_checkpoint(folder)
    assert last is not None  # it saves at the end
    return read_state(last)


def _load_best(
    model: PreTrainedModel, folder: Path, state: Mapping[str, Any], before: float, progress: Progress
) -> None:
    best = state.get("best_global_step")
    if best and not state["best_metric"] < before:
        progress.note(
            f"training did not help: on held-out text the loss was {before:.4f} before it, {state['best_metric']:.4f} "
            "at best; lower learning_rate and scale_learning_rate, or give more text"
        )
    make_whole(model)
    load_weights(model, folder / f"checkpoint-{best or state['global_step']}")


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Say what to do where a file cannot be written; torch and safetensors have errors of their own for that."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, OutputError) or (
            isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error)
        ):
            raise
        raise OutputError(
            f"cannot write to {folder}: {error}; free some space, and --resume goes on from the last checkpoint"
        ) from error
