"""peft's LoRA for layers that it does not know, by its own mechanism of custom modules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

from torch import nn

_EVERY, _MARK = "all-linear", "_llmquant_extended"


def add_lora_layers(layers: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Let every `LoraConfig` put `layers[kind]` around a layer of the class `kind`, and "all-linear" mean these too.

    A second call does nothing.
    """
    from peft.tuners import tuners_utils
    from peft.tuners.lora.config import LoraConfig

    linear = tuple(kind for kind in layers if not issubclass(kind, nn.Embedding))
    complete, name_linear = LoraConfig.__post_init__, tuners_utils._maybe_include_all_linear_layers
    if getattr(complete, _MARK, False):
        return

    @wraps(complete)
    def __post_init__(self: Any) -> None:
        complete(self)
        self._register_custom_module(layers)

    @wraps(name_linear)
    def with_ours(config: Any, model: Any) -> Any:
        asked = getattr(config, "target_modules", None)
        config = name_linear(config, model)
        if isinstance(asked, str) and asked.lower() == _EVERY:
            head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
            config.target_modules |= {
                name
                for name, module in model.named_modules()
                if isinstance(module, linear) and module is not head and not name.endswith(".base_layer")
            }
        return config

    setattr(__post_init__, _MARK, True)
    LoraConfig.__post_init__ = __post_init__
    tuners_utils._maybe_include_all_linear_layers = with_ours
