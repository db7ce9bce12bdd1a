"""Everything that is known before any work: the checkpoint, the model's skeleton and the plan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant.compat.remote_code import remote_code_of
from llmquant.errors import CheckpointError, DataError
from llmquant.models.checkpoint import Checkpoint
from llmquant.models.skeleton import build_skeleton, load_config, take_inventory
from llmquant.recipe.plan import Plan, make_plan
from llmquant.recipe.schema import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_TOKENIZER_FILE = re.compile(r"token|vocab|spiece|sentencepiece|tekken|merges")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model and a recipe that fit each other.

    Attributes:
        source: what the user named.
        checkpoint: its tensors.
        model: skeleton with float32 parameters on the meta device: calibration computes in float32.
        plan: what becomes of each module.
        trust_remote_code: whether code that comes with the checkpoint may run, and goes with the result.
    """

    source: str
    checkpoint: Checkpoint
    model: PreTrainedModel
    plan: Plan
    trust_remote_code: bool = False


def plan_only(source: str | Path, recipe: Recipe, *, trust_remote_code: bool = False) -> Plan:
    """Make the plan from a config alone: a folder, a path to a config.json, or a hub id. Reads no weights.

    Raises:
        PlanError: if the recipe does not fit.
    """
    config = load_config(source, trust_remote_code=trust_remote_code)
    if config.dtype is None and any(Path(source).glob("*.safetensors")):
        _settle_dtype(config, Checkpoint.open(source))
    return make_plan(recipe, take_inventory(build_skeleton(config, trust_remote_code=trust_remote_code)))


def prepare(
    source: str | Path, recipe: Recipe, *, revision: str | None = None, trust_remote_code: bool = False
) -> Prepared:
    """Open the checkpoint, check it, and make the plan.

    Raises:
        CheckpointError: if the checkpoint is damaged, unsafe or quantized already.
        DataError: if the recipe needs calibration text, and there is no tokenizer for it.
        PlanError: if the recipe does not fit the model.
    """
    checkpoint = Checkpoint.open(source, revision=revision, code=trust_remote_code)
    if recipe.calibration is not None:
        require_tokenizer_files(checkpoint.folder)
    config = load_config(checkpoint.folder, trust_remote_code=trust_remote_code)
    if config.dtype is None:
        _settle_dtype(config, checkpoint)
    plan = make_plan(recipe, take_inventory(build_skeleton(config, trust_remote_code=trust_remote_code)))
    model = build_skeleton(config, trust_remote_code=trust_remote_code).float()
    return Prepared(str(source), checkpoint, model, plan, trust_remote_code)


def _settle_dtype(config: PretrainedConfig, checkpoint: Checkpoint) -> None:
    # Old configs do not say; transformers then takes the dtype of the weights.
    config.dtype = next(t.dtype for t in checkpoint.tensors.values() if t.dtype.is_floating_point)


def require_tokenizer_files(folder: Path) -> None:
    """Name a missing tokenizer before any work: a look at the names of the files.

    Raises:
        DataError: if no file looks like a tokenizer's.
    """
    if not any(_TOKENIZER_FILE.search(path.name.lower()) for path in folder.iterdir()):
        raise DataError(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model, vocab.json or the like); copy its tokenizer "
            "files there, from where the model came from. Quantizing needs none with a recipe without calibration"
        )


def load_tokenizer(folder: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder.

    Raises:
        DataError: if there is none.
        CheckpointError: if it needs code from the checkpoint that is not trusted.
    """
    from transformers import AutoTokenizer

    if Path(folder).is_dir():
        require_tokenizer_files(Path(folder))
    try:
        with remote_code_of(folder):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{folder} has no tokenizer that transformers can load ({str(error).split(chr(10), 1)[0]}); copy its "
            "tokenizer files there, or use a recipe that needs no calibration"
        ) from error
    if not tokenizer("text", add_special_tokens=False)[
        "input_ids"
    ]:  # transformers made an empty one of the model's class
        raise DataError(f"{folder} has no tokenizer files; copy them there, or use a recipe that needs no calibration")
    return tokenizer
