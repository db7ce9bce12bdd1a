"""What our trainer does that transformers' own does not; sharded it runs in test_run_processes.py."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from llmquant.training.optimizer import make_optimizer
from llmquant.training.trainer import QatTrainer
from tests.training.conftest import prepared, rows


@pytest.mark.parametrize("bf16", [False, True])
def test_autocast_under_fsdp_is_its_own(bf16: bool, tmp_path: Path) -> None:  # a parameter
    args = TrainingArguments(str(tmp_path), bf16=bf16, use_cpu=True, report_to="none")
    trainer = QatTrainer(prepared(), args, train_dataset=rows())  # pyright: ignore[reportArgumentType]
    assert isinstance(trainer.autocast_smart_context_manager(), nullcontext)  # accelerate wraps the forward
    trainer.is_fsdp_enabled = True
    with trainer.autocast_smart_context_manager():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if bf16 else torch.float32)


def test_its_optimizer_has_the_rates_of_the_recipe(tmp_path: Path) -> None:
    model = prepared()
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = QatTrainer(model, args, train_dataset=rows())  # pyright: ignore[reportArgumentType]
    made = trainer.create_optimizer()
    assert trainer.create_optimizer() is made
    assert [group["lr"] for group in made.param_groups] == [g["lr"] for g in make_optimizer(model).param_groups]
