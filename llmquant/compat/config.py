"""Reading values out of a configuration of transformers, which may keep one value for each layer, or none at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def whole_number(config: PreTrainedConfig, name: str) -> int | None:
    """A positive integer of a configuration; None where it has none, or another for each layer.

    `getattr` with a default is not enough: of values that differ by layer, configurations raise an error of their own.
    """
    value = _value(config, name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def layer_configs(config: PreTrainedConfig) -> Sequence[PreTrainedConfig]:
    """The configuration of each layer where layers differ, otherwise the one that all share."""
    if not _value(config, "is_heterogeneous"):
        return [config]
    return list(config.per_layer_config)


def stored_dtype(config: PreTrainedConfig) -> torch.dtype | None:
    """The dtype of the text model's weights by its configuration, None if it does not say.

    A composite configuration (text beside vision) mostly says it once, at the top.
    """
    found = (_value(part, "dtype") for part in (config.get_text_config(decoder=True), config))
    return next((_as_dtype(dtype) for dtype in found if dtype is not None), None)


def _as_dtype(value: Any) -> torch.dtype:
    return getattr(torch, value) if isinstance(value, str) else value


def _value(config: PreTrainedConfig, name: str) -> Any:
    try:
        return getattr(config, name)
    except Exception:  # noqa: BLE001 - AttributeError, or whatever the configuration answers to a value it cannot give
        return None
