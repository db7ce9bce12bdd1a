"""A model without weights: its configuration, its modules on the meta device, and the list of what they hold.

Nothing here reads weights, nor runs code from a checkpoint unless it is trusted: a 70B model is understood in seconds
from its config.json.
"""

from __future__ import annotations

import copy
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from llmquant.compat.border import foreign
from llmquant.compat.config import layer_configs, stored_dtype, whole_number
from llmquant.compat.foreign_layers import read_by_others
from llmquant.compat.remote_code import remote_code_of, runs_remote_code
from llmquant.errors import CheckpointError
from llmquant.files import check_name
from llmquant.models.config_file import NAME as CONFIG
from llmquant.models.config_file import ConfigFile
from llmquant.models.families import ATTENTION
from llmquant.models.hub import check_kind, locate
from llmquant.models.inventory import Inventory
from llmquant.models.obstacles import with_obstacles
from llmquant.models.walk import list_modules
from llmquant.nn.counting import is_packed, weight_count

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MAX_PARAMETERS = 150_000
MAX_BUFFER = 1 << 28
_FILLED = {torch.arange, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}


def load_config(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read a model's configuration.

    `source` is a folder with config.json, a config file itself, or a hub id such as "org/model".

    Raises:
        CheckpointError: if there is none, it is not valid, or it needs code from the checkpoint that is not trusted.
    """
    path = Path(source).expanduser()
    check_name(path)
    check_kind(path)
    if not path.exists() or path.is_dir():
        folder = locate(source, code=trust_remote_code, config_only=True)
        path = folder / CONFIG
        if not path.is_file():
            raise CheckpointError(f"{folder} has no config.json; a Hugging Face model folder has one")
    return config_from(ConfigFile.read(path), trust_remote_code=trust_remote_code)


def config_from(file: ConfigFile, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration that a reading of config.json describes; the file itself is not looked at again.

    Where code that lies beside it runs (`trust_remote_code`), the file is read again.

    Raises:
        CheckpointError: if it is not valid, or needs code from the checkpoint that is not trusted.
    """
    from transformers import AutoConfig

    source = file.file.parent
    if not isinstance(file.data.get("model_type"), str):
        raise CheckpointError(
            f"cannot read the configuration of {source}: {file.file.name} names no model_type; wanted the config.json "
            "of a model"
        )
    with foreign(f"cannot read the configuration of {source}"), remote_code_of(source), TemporaryDirectory() as copy:
        (Path(copy) / CONFIG).write_bytes(file.text)
        with_code = trust_remote_code and "auto_map" in file.data
        config = AutoConfig.from_pretrained(source if with_code else copy, trust_remote_code=trust_remote_code)
    config.name_or_path = str(source)
    return config


def build_skeleton(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build the causal language model of a configuration with parameters on meta, real buffers and tied weights.

    Its dtype is that of the checkpoint, as far as the configuration says it at all.

    Raises:
        CheckpointError: if transformers has no causal language model for it, or its code is not trusted.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    source = config.name_or_path or config.model_type
    with foreign(f"cannot build a causal language model of type {config.model_type!r}"), remote_code_of(source):
        with init_empty_weights(include_buffers=False), _EmptyOnMeta():
            dtype = stored_dtype(config)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, dtype=dtype)
        model.tie_weights()
    lost = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if lost:
        raise CheckpointError(
            f"{type(model).__name__} leaves its buffers uninitialised ({lost[0]}); it is not supported"
        )
    return model.eval()


def original_weight_count(model: PreTrainedModel) -> int:
    """`weight_count` of the model that a loaded one was before another library put codes and scales into it."""
    if is_packed(model) or not read_by_others(model):
        return weight_count(model)
    plain = copy.deepcopy(model.config)
    plain.__dict__.pop("quantization_config", None)
    return weight_count(build_skeleton(plain, trust_remote_code=runs_remote_code(model)))


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find the list of decoder blocks: the longest ModuleList of the text decoder whose items hold attention.

    Models without attention (Mamba) have the longest list of anything.

    Returns its dotted name, such as "model.layers", too.

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
        path=prefix,
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
    mixture exceed the memory of most machines. It is also where numbers that no model has are noticed: a config.json
    may ask for 10**9 layers or for a table of angles of gigabytes, and building would never end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
            self._made += 1
            if self._made > MAX_PARAMETERS:
                raise CheckpointError(
                    f"config.json describes more than {MAX_PARAMETERS} tensors; a number in it is wrong"
                )
        elif func in _FILLED and _elements(func, args, kwargs) > MAX_BUFFER:
            raise CheckpointError(
                f"config.json makes the model compute a table of more than {MAX_BUFFER} numbers; that cannot be right"
            )
        return func(*args, **kwargs)


def _elements(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """How many elements a call of one of `_FILLED` makes; 0 on meta."""
    if kwargs.get("device") == "meta":
        return 0
    if func is torch.arange:
        start, end = (0, *args)[-2:] if len(args) < 3 else args[:2]
        step = args[2] if len(args) > 2 else kwargs.get("step", 1)
        return abs(kwargs.get("end", end) - kwargs.get("start", start)) / (abs(step) or 1)
    sizes = args[0] if args and isinstance(args[0], (tuple, list)) else args
    return prod(size for size in sizes if isinstance(size, int))


def _has_attention(item: nn.Module) -> bool:
    return any(
        word in text.lower()
        for name, module in item.named_modules()
        for text in (name, type(module).__name__)
        for word in ATTENTION
    )
