"""Private attributes of transformers about parameters: which are initialized, not saved, or tied."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn


def mark_initialized(weight: Tensor) -> None:
    """Let `_init_weights` of models leave a tensor alone."""
    weight._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]


def not_saved(model: nn.Module) -> set[str]:
    """Names of parameters that `save_pretrained` leaves out."""
    attributes: Any = model
    return set(attributes._keys_to_ignore_on_save or ())


def set_not_saved(model: nn.Module, names: Collection[str]) -> None:
    """Let `save_pretrained` leave out these parameters and no others."""
    attributes: Any = model
    attributes._keys_to_ignore_on_save = set(names)


def tied(model: nn.Module) -> dict[str, str]:
    """Each parameter that is another's by a second name, and that other."""
    return dict(getattr(model, "all_tied_weights_keys", {}))


def set_tied(model: nn.Module, names: Mapping[str, str]) -> None:
    """Say which parameters are others' by another name, to transformers and to `tie_weights()` of a user."""
    attributes: Any = model
    if names != tied(model):
        attributes.all_tied_weights_keys = dict(names)
        attributes._tied_weights_keys = dict(names)
