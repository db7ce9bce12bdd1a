"""The trainer of a prepared model: transformers' own, with the recipe's learning rates."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from llmquant.progress import Progress
from llmquant.training.callback import QatCallback
from llmquant.training.optimizer import make_optimizer
from llmquant.training.text import TrainingText


class QatTrainer(Trainer):
    """A `Trainer` that FSDP2 may shard, too: it makes its optimizer itself, and weights are rounded in float32."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with the groups of `make_optimizer`, by the recipe that the model was prepared with."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            self.optimizer = make_optimizer(trained)
        return self.optimizer

    def create_accelerator_and_postprocess(self) -> None:
        """Let FSDP gather weights as they are: those cast to 16 bits would round to other codes than are packed."""
        super().create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None:
            plugin.mixed_precision_policy = None

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        """Under FSDP in place of that policy, as without FSDP accelerate does it."""
        if self.is_fsdp_enabled and self.args.bf16:
            return torch.autocast(self.args.device.type, torch.bfloat16, cache_enabled=cache_enabled)
        return super().autocast_smart_context_manager(cache_enabled)


def make_trainer(model: Any, args: TrainingArguments, text: TrainingText, progress: Progress) -> Trainer:
    """With everything that training a prepared model takes."""
    trainer = QatTrainer(
        model, args, train_dataset=text.train, eval_dataset=text.valid,  # pyright: ignore[reportArgumentType]  # lists do
        callbacks=[QatCallback(), _Tell(progress)],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


class _Tell(TrainerCallback):
    """What happens, in the words of `Progress`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.stage("train", state.max_steps, work=state.max_steps - state.global_step)
        if state.global_step:
            self._progress.step(steps=state.global_step, work=0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.step()
        if state.global_step >= state.max_steps:  # the trainer saves at the end, but measures only at whole intervals
            control.should_evaluate = True

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if "loss" in more["logs"]:
            self._progress.loss(more["logs"]["loss"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        step = f"step {state.global_step} of {state.max_steps}"
        self._progress.note(f"{step}: loss {more['metrics']['eval_loss']:.4f} on held-out text")
