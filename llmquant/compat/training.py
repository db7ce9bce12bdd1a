"""What training arguments are called in the installed transformers, and how one process stays on one device."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import TrainingArguments


def recompute(*, wanted: bool) -> dict[str, bool]:
    """The argument that throws activations away and computes them again (gradient checkpointing)."""
    names = {each.name for each in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {name: True} if wanted else {}


def stay_on_one_device(args: TrainingArguments) -> TrainingArguments:
    """Do not copy the model to every GPU that is there (`DataParallel`), which is what one process does by default."""
    more: Any = args
    if args.n_gpu > 1:  # which settles the devices, too
        more._n_gpu = 1
    return args
