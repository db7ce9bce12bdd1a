"""Where a packed model may be saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.errors import CheckpointError
from llmquant.nn.counting import is_packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_save(model: PreTrainedModel, folder: str | Path) -> None:
    """Refuse to save a packed model over a result of `llmquant.quantize`.

    `save_pretrained` writes its own weights and config.json, and leaves the rest: older weights, their index and the
    digests of llmquant.json, which then belong to nothing.

    Raises:
        CheckpointError: if the folder holds an llmquant.json.
    """
    from llmquant.engine.output.folder import PROVENANCE

    if is_packed(model) and (Path(folder) / PROVENANCE).exists():
        raise CheckpointError(
            f"{folder} holds a result of llmquant.quantize ({PROVENANCE}); saving into it would mix two models. Save "
            "into another folder, or remove this one first"
        )
