"""What a training run is made of: the model, its teacher, its tokenizer and the text, seen to belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from llmquant.data.calibration import check_vocabulary, context_limit
from llmquant.engine.prepare import load_tokenizer
from llmquant.engine.run import own_code
from llmquant.errors import DataError, RecipeError
from llmquant.hf.load import load
from llmquant.models.checkpoint import Checkpoint
from llmquant.models.skeleton import take_inventory
from llmquant.recipe.plan import make_plan
from llmquant.recipe.qat import Qat
from llmquant.recipe.schema import Recipe, canonical_json
from llmquant.training.text import TrainingText, load_rows


@dataclass(slots=True)
class Inputs:
    """`identity` is what of them two runs must have in common to give the same bytes."""

    model: PreTrainedModel
    teacher: PreTrainedModel | None
    tokenizer: Any
    text: TrainingText
    qat: Qat
    dtype: torch.dtype  # of the checkpoint
    identity: dict[str, Any]

    def facts(self, before: float, state: Mapping[str, Any], world: int) -> dict[str, Any]:
        """What llmquant.json says of the training."""
        steps, best = state["global_step"], state.get("best_global_step") or state["global_step"]
        return {
            **self.text.about,
            "teacher": None if self.teacher is None else str(self.teacher.name_or_path),
            "steps": steps,
            "best_step": best,
            "tokens": steps * self.qat.batch * self.text.length,
            "loss_before": before,
            "loss_after": state.get("best_metric"),
            "seed": self.qat.seed,
            "processes": world,
            "log": [{key: value for key, value in entry.items() if key in _LOGGED} for entry in state["log_history"]],
        }


_LOGGED = (
    "step", "epoch", "loss", "eval_loss", "grad_norm", "learning_rate", "scale_drift", "codes_flipped",
    "codes_flipped_since_log", "dead_zone",
)  # fmt: skip


def open_inputs(
    source: str | Path, recipe: Recipe, qat: Qat, text: str, valid: str | None, teacher: str | Path | None,
    *, trust_remote_code: bool,
) -> Inputs:  # fmt: skip
    """Load what a run needs.

    Raises:
        LlmquantError: CheckpointError, DataError, PlanError or RecipeError; names what does not belong together.
    """
    checkpoint = Checkpoint.open(source, code=trust_remote_code)
    tokenizer = load_tokenizer(checkpoint.folder, trust_remote_code=trust_remote_code)
    model = load(source, trust_remote_code=trust_remote_code)
    make_plan(recipe, take_inventory(model))  # before any work
    wanted = None if qat.steps is None else qat.steps * qat.batch
    context = context_limit(model.config)
    rows = load_rows(text, valid, tokenizer, length=qat.length, context=context, wanted=wanted)
    check_vocabulary(torch.stack([row["input_ids"] for row in rows.train + rows.valid]), model)
    identity = {
        "source": checkpoint.fingerprint(), "recipe": canonical_json(recipe), "text": rows.identity, **own_code(recipe)
    }  # fmt: skip
    aim = None
    if qat.loss.kl:
        aim = load(teacher or source, trust_remote_code=trust_remote_code)
        if teacher is not None:
            other = Checkpoint.open(teacher, allow_quantized=True)
            _require_same_tokens(tokenizer, load_tokenizer(other.folder, trust_remote_code=trust_remote_code), teacher)
            identity["teacher"] = other.fingerprint()
    elif teacher is not None:
        raise RecipeError(f"{teacher} would be ignored: qat.loss.kl is 0, so there is nothing to learn from a teacher")
    return Inputs(model, aim, tokenizer, rows, qat, model.dtype, identity)


def _require_same_tokens(own: Any, other: Any, teacher: str | Path) -> None:
    mine, theirs = own.get_vocab(), other.get_vocab()
    if odd := [token for token in mine if mine[token] != theirs.get(token)] or [t for t in theirs if t not in mine]:
        raise DataError(
            f"{teacher} has another tokenizer: {odd[0]!r} is token {theirs.get(odd[0])} there and {mine.get(odd[0])} "
            f"here, and {len(odd) - 1} more differ; a teacher has the tokenizer of the model"
        )
