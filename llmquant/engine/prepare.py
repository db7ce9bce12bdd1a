"""Everything that is known before any work: the checkpoint, the model's skeleton and the plan."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant.compat.border import foreign
from llmquant.compat.loading import KeyMap, map_keys
from llmquant.compat.remote_code import remote_code_of
from llmquant.data.text import check_dataset
from llmquant.engine.output.folder import PROVENANCE
from llmquant.engine.weights import Work
from llmquant.errors import CheckpointError, DataError, PlanError, RecipeError
from llmquant.models.checkpoint import Checkpoint, refuse_quantized
from llmquant.models.config_file import NAME as CONFIG
from llmquant.models.config_file import leads_outside
from llmquant.models.edits import Edit
from llmquant.models.skeleton import build_skeleton, config_from, load_config, take_inventory
from llmquant.models.source import Edited
from llmquant.recipe.plan import Plan, make_plan
from llmquant.recipe.schema import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_TOKENIZER_FILE = re.compile(r"token|vocab|spiece|sentencepiece|tekken|merges")


_NOT_COPIED = {CONFIG, PROVENANCE, "training.json"}
_COPIED_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model and a recipe that fit each other.

    Attributes:
        model: skeleton on the meta device.
        trust_remote_code: whether code that comes with the checkpoint may run, and goes with the result.
    """

    source: str  # a hub id, or the whole path of a folder
    checkpoint: Checkpoint
    model: PreTrainedModel
    plan: Plan
    key_map: KeyMap
    trust_remote_code: bool = False

    def work(self, edits: Iterable[Edit] = ()) -> Work:
        """What there is to do."""
        names = self.key_map.parameter
        return Work(self.model, self.plan, Edited(self.checkpoint, edits, names=names), names, converted=True)


def plan_only(
    source: str | Path, recipe: Recipe, *, allow_quantized: bool = False, trust_remote_code: bool = False
) -> Plan:
    """Make the plan from a config alone: a folder, a path to a config.json, or a hub id. Reads no weights.

    Raises:
        CheckpointError: if the model is quantized already, unless `allow_quantized`.
        DataError: if the recipe needs calibration text, and there are weights but no tokenizer, or not that text.
        PlanError: if the recipe does not fit.
    """
    config = load_config(source, trust_remote_code=trust_remote_code)
    if not allow_quantized:
        refuse_quantized(source, getattr(config, "quantization_config", None))
    if any(Path(source).glob("*.safetensors")):  # more than a config
        if recipe.calibration is not None:
            require_tokenizer_files(Path(source))
            check_dataset(recipe.calibration.dataset)
        if config.dtype is None:
            _settle_dtype(config, Checkpoint.open(source))
    plan = make_plan(recipe, take_inventory(build_skeleton(config, trust_remote_code=trust_remote_code)))
    _check_format(plan, config)
    return plan


def prepare(
    source: str | Path, recipe: Recipe, *, revision: str | None = None, trust_remote_code: bool = False
) -> Prepared:
    """Open the checkpoint, check it, and make the plan.

    Raises:
        CheckpointError: if the checkpoint is damaged, unsafe or quantized already.
        DataError: if the recipe needs calibration text, and there is no tokenizer for it.
        PlanError: if the recipe does not fit the model.
        RecipeError: if it trains.
    """
    refuse_qat(recipe)
    checkpoint = Checkpoint.open(source, revision=revision, code=trust_remote_code)
    if recipe.calibration is not None:
        require_tokenizer_files(checkpoint.folder)
    config = _config_of(checkpoint, trust_remote_code=trust_remote_code)
    if config.dtype is None:
        _settle_dtype(config, checkpoint)
    model = build_skeleton(config, trust_remote_code=trust_remote_code)
    plan = make_plan(recipe, take_inventory(model))
    _check_format(plan, config)
    folder = Path(source).expanduser()  # told by its whole path: who reads it later is somewhere else
    named = str(folder.resolve()) if folder.is_dir() else str(source)
    return Prepared(named, checkpoint, model, plan, map_keys(model, checkpoint.tensors), trust_remote_code)


def refuse_qat(recipe: Recipe) -> Recipe:
    """The recipe, if it does not train.

    Raises:
        RecipeError: if it does; says what to call instead.
    """
    if recipe.training_text is not None:
        raise RecipeError(
            f"recipe {recipe.name!r} trains on a text of its own, which llmquant.quantize(source, recipe, out) does "
            "for a folder or a hub id; save the model, or take a recipe without a section qat"
        )
    if recipe.qat is not None:
        raise RecipeError(
            f"recipe {recipe.name!r} trains (section qat): `llmquant qat MODEL -r RECIPE --train TEXT -o OUT` does "
            "that, or llmquant.prepare_qat(model, recipe) with a Trainer; to round only, remove the section"
        )
    return recipe


def _check_format(plan: Plan, config: PretrainedConfig) -> None:
    reasons = list(plan.format.obstacles(config.to_dict()))
    if reasons:
        raise PlanError(
            f"{plan.inventory.architecture} cannot be written as {plan.recipe.format}: {'; '.join(reasons)}; drop "
            "`format:` from the recipe"
        )


def _config_of(checkpoint: Checkpoint, *, trust_remote_code: bool) -> PretrainedConfig:
    if checkpoint.config is None:
        raise CheckpointError(f"{checkpoint.folder} has no config.json; a Hugging Face model folder has one")
    copied = (checkpoint.config.file, *small_files(checkpoint.folder, code=trust_remote_code))
    linked = [path.name for path in copied if leads_outside(path)]
    if linked:
        raise CheckpointError(
            f"{checkpoint.folder}: {', '.join(linked[:5])}: links to files elsewhere, which would be copied into the "
            "result; put copies there, or remove the links"
        )
    return config_from(checkpoint.config, trust_remote_code=trust_remote_code)


def small_files(folder: Path, *, code: bool = False) -> list[Path]:
    """What goes into the result beside weights and config.json: tokenizer files and, if wanted, Python code; sorted."""
    suffixes = _COPIED_SUFFIXES | {".py"} if code else _COPIED_SUFFIXES
    names = sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.is_file())
    return [path for path in names if path.name not in _NOT_COPIED and not path.name.endswith(".index.json")]


def _settle_dtype(config: PretrainedConfig, checkpoint: Checkpoint) -> None:
    # Old configs do not say; transformers then takes the dtype of the weights.
    dtypes = [tensor.dtype for tensor in checkpoint.tensors.values() if tensor.dtype.is_floating_point]
    if not dtypes:
        raise CheckpointError(f"{checkpoint.folder}: none of its tensors holds floating-point numbers")
    config.dtype = dtypes[0]


def require_tokenizer_files(folder: Path) -> None:
    """Name a missing tokenizer before any work: a look at the names of the files.

    Raises:
        DataError: if no file looks like a tokenizer's.
    """
    if not any(_TOKENIZER_FILE.search(path.name.lower()) for path in folder.iterdir()):
        raise DataError(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model, vocab.json or the like); copy its tokenizer "
            "files there, from where the model came from"
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
    advice = "copy its tokenizer files there, or use a recipe that needs no calibration"
    with foreign(f"{folder} has no tokenizer that transformers can load; {advice}", DataError), remote_code_of(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        found = tokenizer("text", add_special_tokens=False)["input_ids"]
    if not found:  # transformers made an empty one of the model's class
        raise DataError(f"{folder} has no tokenizer files; {advice}")
    return tokenizer
