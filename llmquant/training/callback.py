"""`QatCallback`: what a `Trainer` does not know of layers that are trained as they will be read.

It turns rounding on and freezes ranges at their steps, which it takes from `state.global_step` alone, so a resumed run
does the same as one that was never interrupted; it adds to the log how the grid moved, and stops when training has
diverged.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from llmquant.errors import CheckpointError
from llmquant.hf.qat import fake_layers, qat_state
from llmquant.training.divergence import Watch
from llmquant.training.movement import Movement

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from llmquant.recipe.qat import Qat

log = logging.getLogger(__name__)


class QatCallback(TrainerCallback):
    """Give it to any `Trainer` of transformers, or one derived from it, with a model from `llmquant.prepare_qat`.

    What it adds to each entry of the log that has a loss, and to `state.log_history`, is in `Movement.facts`.

    Args:
        qat: the section of a recipe; by default that of the model's.

    Raises:
        CheckpointError: from the trainer, if its model was not prepared.
        QuantizationError: from the trainer, if a gradient is no number; names the layer. Checkpoints stay as they are.
    """

    def __init__(self, qat: Qat | None = None) -> None:
        self._qat = qat
        self._movement: Movement | None = None
        self._watch: Watch | None = None
        self._saved = ""

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Note where codes and scales are before a checkpoint is loaded to resume from."""
        if not fake_layers(model):
            raise CheckpointError("QatCallback: the model was not prepared; call llmquant.prepare_qat(model, recipe)")
        self._qat = self._qat or qat_state(model).qat
        self._movement = Movement(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **more: Any
    ) -> None:
        """Bring the layers to where the step is that training begins or resumes at."""
        self._watch = Watch(model)
        if self._movement is not None and state.global_step:  # the first were those before the checkpoint was loaded
            self._movement.mark(model)
        self._bring(model, state, more["optimizer"])
        decayed = {id(p) for group in more["optimizer"].param_groups if group["weight_decay"] for p in group["params"]}
        if any(id(change) in decayed for change in _changes(model)):
            log.warning(
                "scales are in an optimizer group with weight decay, which pulls them back to where they started; give "
                "the Trainer optimizers=(llmquant.training.optimizer.make_optimizer(model), None)"
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **more: Any
    ) -> None:
        """Turn rounding on, or freeze ranges, if this is the step for it."""
        self._bring(model, state, more["optimizer"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Stop before weights take a step that is no number."""
        if self._watch is not None and not args.fp16:  # whose scaler skips such steps, and looks for another factor
            self._watch.check(model, state.global_step + 1, self._saved)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note which checkpoint is the last."""
        self._saved = f"{args.output_dir}/checkpoint-{state.global_step}"

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **more: Any
    ) -> None:
        """Add how the grid moved."""
        logs = more["logs"]
        if self._movement is None or "loss" not in logs:
            return
        facts = self._movement.facts(model)
        logs.update(facts)
        state.log_history[-1].update(facts)  # a copy that the trainer made before it asked

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the hooks away."""
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def _bring(self, model: nn.Module, state: TrainerState, optimizer: Any) -> None:
        assert self._qat is not None
        step, qat = state.global_step, self._qat
        frozen = qat.freeze_after < 1 and step >= math.ceil(qat.freeze_after * state.max_steps)
        layers = fake_layers(model).values()
        if frozen and not all(layer.ranges_frozen for layer in layers):
            forget(optimizer, _changes(model))  # momentum would go on
        for layer in layers:
            layer.fake_quant, layer.ranges_frozen = step >= qat.fake_quant_after_n_steps, frozen


def forget(optimizer: Any, parameters: list[Tensor]) -> None:
    """Let an optimizer start anew with these, so that a gradient of 0 leaves them where they are.

    What it keeps as numbers, such as the count of steps, stays.
    """
    for parameter in parameters:
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                value.zero_()


def _changes(model: nn.Module) -> list[Tensor]:
    found = (layer.weight_scale_change for layer in fake_layers(model).values())
    return [change for change in found if change is not None]
