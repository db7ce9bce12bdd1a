"""What the section `qat` of a recipe says, in the words of transformers' `Trainer`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainingArguments

from llmquant.compat.training import recompute, stay_on_one_device
from llmquant.errors import DeviceError, RecipeError
from llmquant.recipe.qat import Qat

_PER_DEVICE = 4  # rows at once, where nobody says another number
_SAVES = 10  # checkpoints of a run, each with a validation
_LOGS = 50


@dataclass(frozen=True, slots=True)
class Options:
    """How to train, beside what the recipe says. All of it goes into the identity of a run.

    Attributes:
        per_device: rows of a batch that a device takes at once; by default the largest divisor up to 4.
        recompute: throw activations away and compute them again, for less memory (gradient checkpointing).
        save_steps: between checkpoints and validations; by default a tenth of all steps.

    Raises:
        RecipeError: if a number is below 1.
    """

    per_device: int | None = None
    recompute: bool = False
    save_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("per_device", "save_steps"):
            check_count(name, getattr(self, name))


def check_count(name: str, number: int | None) -> None:
    """Refuse a number that counts nothing.

    Raises:
        RecipeError: if it is below 1.
    """
    if number is not None and number < 1:
        raise RecipeError(f"{name} is {number}; give at least 1, or leave it out")


def rank() -> int:
    """Of this process among those that a launcher started; 0 of one alone."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """That a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def steps_of(qat: Qat, rows: int) -> int:
    """Steps of the optimizer, of which either number in the recipe may end it.

    Raises:
        RecipeError: if none of them would compute with rounded weights.
    """
    whole = math.ceil(qat.epochs * math.ceil(rows / qat.batch))
    steps = whole if qat.steps is None else min(qat.steps, whole)
    if steps <= qat.fake_quant_after_n_steps:
        raise RecipeError(
            f"all {steps} steps would train weights that are not rounded: qat.fake_quant_after_n_steps is "
            f"{qat.fake_quant_after_n_steps}; lower it, or train longer"
        )
    return steps


def training_arguments(qat: Qat, options: Options, folder: Path, device: torch.device, steps: int) -> TrainingArguments:
    """For a run of this process.

    Raises:
        RecipeError: if the batch cannot be divided among devices.
        DeviceError: if the device is not the first that is visible.
    """
    if device.index:
        raise DeviceError(
            f"training takes the first device that is visible, not {device}; set CUDA_VISIBLE_DEVICES={device.index}"
        )
    share, odd = divmod(qat.batch, processes())
    per_device = options.per_device or max(n for n in range(1, _PER_DEVICE + 1) if share % n == 0)
    if odd or share % per_device:
        raise RecipeError(
            f"a batch of {qat.batch} rows cannot be divided among {processes()} devices that take {per_device} at "
            "once; change qat.batch, or the number of rows at once"
        )
    save = options.save_steps or math.ceil(steps / _SAVES)
    return stay_on_one_device(TrainingArguments(
        str(folder),
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=per_device,
        gradient_accumulation_steps=share // per_device,
        max_steps=steps,
        learning_rate=qat.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(math.ceil(qat.warmup * steps), steps - 1),  # their first has a rate of 0
        max_grad_norm=1.0,
        seed=qat.seed % (1 << 32),  # that of numpy
        use_cpu=device.type == "cpu",
        bf16=device.type in ("cuda", "xpu"),
        eval_strategy="steps",
        eval_steps=save,
        eval_delay=qat.fake_quant_after_n_steps,  # before, nothing is rounded
        save_strategy="steps",
        save_steps=save,
        save_total_limit=2,  # the best, and the last
        metric_for_best_model="loss",
        greater_is_better=False,
        prediction_loss_only=True,
        logging_steps=max(1, steps // _LOGS),
        report_to="none",
        disable_tqdm=True,
        **recompute(wanted=options.recompute),  # pyright: ignore[reportArgumentType]  # it has a bool
    ))  # fmt: skip
