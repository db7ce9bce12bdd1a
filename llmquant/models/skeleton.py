"""A model without weights: its configuration, its modules on the meta device, and the list of what they hold.

Nothing here reads weights, nor runs code from a checkpoint unless it is trusted: a 70B model is understood in seconds
from its config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from llmquant.compat.config import layer_configs, stored_dtype, whole_number
from llmquant.compat.remote_code import remote_code_of
from llmquant.errors import CheckpointError
from llmquant.models.families import ATTENTION
from llmquant.models.hub import check_kind
from llmquant.models.inventory import list_modules
from llmquant.models.obstacles import with_obstacles
from llmquant.recipe.inventory import Inventory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_BAD_CONFIG = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)  # what wrong values make code raise


def load_config(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read a model's configuration.

    Args:
        source: a folder with config.json, a config file itself, or a hub id such as "org/model".
        trust_remote_code: run code that comes with the checkpoint, if its architecture needs it.

    Raises:
        CheckpointError: if there is none, it is not valid, or it needs code from the checkpoint that is not trusted.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = Path(source).expanduser()
    check_kind(path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise CheckpointError(f"{path} has no config.json; a Hugging Face model folder has one")
    if not path.exists() and (isinstance(source, Path) or source.count("/") > 1 or source.startswith((".", "~"))):
        raise CheckpointError(f"{source} does not exist; give a model folder, a config.json or a hub id (org/name)")
    if trust_remote_code and path.is_file() and path.name == "config.json":
        path = path.parent  # where its code is
    where = str(path) if path.exists() else str(source)
    try:
        with remote_code_of(source):
            return AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code)
    except CheckpointError:
        raise
    except (*_BAD_CONFIG, OSError, StrictDataclassError) as error:
        advice = "" if path.exists() else " It is no folder here; check the path, or the hub id and the connection."
        raise CheckpointError(f"cannot read the configuration of {source}: {_reason(error)}{advice}") from error


def build_skeleton(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build the causal language model of a configuration with parameters on meta, real buffers and tied weights.

    Its dtype is that of the checkpoint, as far as the configuration says it at all.

    Args:
        config: from `load_config`.
        trust_remote_code: run code that comes with the checkpoint, if the model needs it.

    Raises:
        CheckpointError: if transformers has no causal language model for it, or its code is not trusted.
    """
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    source = config.name_or_path or config.model_type
    try:
        with init_empty_weights(include_buffers=False), _EmptyOnMeta(), remote_code_of(source):
            dtype = stored_dtype(config)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, dtype=dtype)
    except CheckpointError:
        raise
    except (*_BAD_CONFIG, ImportError, StrictDataclassError) as error:
        raise CheckpointError(
            f"cannot build a causal language model of type {config.model_type!r}: {_reason(error)}"
        ) from error
    lost = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if lost:
        raise CheckpointError(
            f"{type(model).__name__} leaves its buffers uninitialised ({lost[0]}); it is not supported"
        )
    model.tie_weights()
    return model.eval()


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find the list of decoder blocks: the longest ModuleList of the text decoder whose items hold attention.

    Models without attention (Mamba) have the longest list of anything.

    Returns:
        Its dotted name, such as "model.layers", and the list.

    Raises:
        CheckpointError: if the model has no list of blocks.
    """
    decoder = model.get_decoder()  # not a vision tower beside it
    if not any(isinstance(module, nn.ModuleList) for module in decoder.modules()):
        decoder = model  # some call their output layer so
    inside = {id(module) for module in decoder.modules()}
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and id(module) in inside
    ]
    with_attention = [entry for entry in lists if any(_has_attention(item) for item in entry[1])]
    if not lists:
        raise CheckpointError(
            f"{type(model).__name__} has no list of decoder blocks, so llmquant cannot walk through it"
        )
    return max(with_attention or lists, key=lambda entry: len(entry[1]))


def take_inventory(model: PreTrainedModel) -> Inventory:
    """Take stock of a model: every parameter in exactly one entry.

    Args:
        model: a causal language model; on meta is enough.

    Returns:
        An inventory whose parameters add up to the model's unique parameters.

    Raises:
        CheckpointError: if the model has no list of decoder blocks.
    """
    prefix, blocks = decoder_blocks(model)
    modules, trial = with_obstacles(model, list_modules(model, prefix, len(blocks)), list(blocks))
    return Inventory(
        architecture=type(model).__name__,
        model_type=model.config.model_type,
        dtype=model.dtype,
        modules=modules,
        blocks=len(blocks),
        head_sizes=_head_sizes(model.config),
        untried=trial.failure,
        recast=trial.recast,
    )


def _head_sizes(config: PreTrainedConfig) -> tuple[int, ...]:
    sizes = (_head_size(layer) for layer in layer_configs(config.get_text_config()))
    return tuple(dict.fromkeys(size for size in sizes if size))


def _head_size(config: PreTrainedConfig) -> int | None:
    size = whole_number(config, "head_dim")
    hidden, heads = whole_number(config, "hidden_size"), whole_number(config, "num_attention_heads")
    return size or (hidden // heads if hidden and heads else None)


class _EmptyOnMeta(TorchFunctionMode):
    """`torch.empty` without a device makes meta tensors.

    accelerate alone allocates each parameter before it moves it to meta, and the experts of one layer of a large
    mixture exceed the memory of most machines.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _has_attention(item: nn.Module) -> bool:
    return any(
        word in text.lower()
        for name, module in item.named_modules()
        for text in (name, type(module).__name__)
        for word in ATTENTION
    )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
