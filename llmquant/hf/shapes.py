"""Before anything is loaded: do the tensors have the shapes that the configuration asks for?

transformers looks only while it loads, after it has made room for what it will then refuse, and a wrong number in a
config.json can ask for more memory than there is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmquant.compat.loading import check_fits
from llmquant.compat.quantizers import METHOD
from llmquant.hf.find import NotPackable, find_packed
from llmquant.hf.place import place_empty
from llmquant.models.checkpoint import Checkpoint
from llmquant.models.skeleton import build_skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check_shapes(checkpoint: Checkpoint, config: PreTrainedConfig, *, trust_remote_code: bool = False) -> None:
    """Compare every tensor of a checkpoint with the model that would take it, packed layers included.

    Checkpoints in formats that llmquant leaves to other readers are not compared.

    Raises:
        CheckpointError: naming the first tensor that does not fit, or what in the configuration makes no sense.
    """
    plain = copy.deepcopy(config)
    stored = plain.__dict__.pop("quantization_config", None)
    if stored is not None and (not isinstance(stored, Mapping) or stored.get("quant_method") != METHOD):
        return
    model = build_skeleton(plain, trust_remote_code=trust_remote_code)
    if stored is not None:
        try:
            place_empty(model, find_packed(model, stored, list(checkpoint.tensors)), model.dtype)
        except NotPackable:
            return
    check_fits(model, {key: info.on_meta() for key, info in checkpoint.tensors.items()})
