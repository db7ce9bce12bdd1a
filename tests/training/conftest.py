"""A tiny model in training, and a `Trainer` for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

import llmquant
from llmquant.training.callback import QatCallback
from tests.engine.conftest import tiny_llama


def recipe(scheme: str = "int4-g32", **changes: Any) -> dict[str, Any]:
    qat = {"ranges": "lsq", "loss": {"kl": 0.0, "cross_entropy": 1.0}} | changes
    return {"version": 1, "name": "mine", "rules": [{"match": "linear", "scheme": scheme}], "qat": qat}


def prepared(**changes: Any) -> Any:
    return llmquant.prepare_qat(tiny_llama().float(), recipe(**changes), dtype=torch.bfloat16)


def rows(count: int = 64, length: int = 16) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(257, (count, length), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(model: Any, folder: Path, **changes: Any) -> Trainer:
    """Eight steps of four rows, a log each."""
    options: dict[str, Any] = {
        "per_device_train_batch_size": 4, "max_steps": 8, "learning_rate": 1e-3, "logging_steps": 1, "use_cpu": True,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "lr_scheduler_type": "constant",
    }  # fmt: skip
    more = {name: changes.pop(name) for name in ("optimizers", "callbacks") if name in changes}
    args = TrainingArguments(str(folder), **(options | changes))
    return Trainer(model, args, train_dataset=rows(), **({"callbacks": [QatCallback()]} | more))  # pyright: ignore[reportArgumentType]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers prints of each log."""
    monkeypatch.setattr("builtins.print", lambda *_, **__: None)
