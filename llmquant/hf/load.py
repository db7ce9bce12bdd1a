"""`llmquant.load`: a checkpoint, quantized or not, as a model that is ready to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmquant.engine.output import JOURNAL, is_finished
from llmquant.errors import CheckpointError
from llmquant.hf import register


def load(
    source: str | Path, *, dtype: str | torch.dtype = "auto", device_map: Any = None, packed: bool = True
) -> PreTrainedModel:
    """Load a causal language model; integer weights stay packed.

    Args:
        source: folder, or hub id.
        dtype: of everything but the codes, scales included; "auto" is the dtype in which the checkpoint was quantized.
            In another dtype the dequantized weights are rounded differently.
        device_map: as in `from_pretrained`; "disk" works.
        packed: False turns the weights into dense ones after loading, for code that looks at `weight`.

    Raises:
        CheckpointError: if the folder is missing, unfinished or incomplete.
    """
    register()
    _check_folder(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map=device_map)
    if not packed and getattr(getattr(model, "hf_quantizer", None), "packed", False):
        model = model.dequantize()
    return model


def _check_folder(source: str | Path) -> None:
    folder = Path(source)
    partial = folder.with_name(f"{folder.name}.partial")
    for path in (folder, partial):
        if (path / JOURNAL).is_file() and not is_finished(folder):
            raise CheckpointError(f"{path} holds an unfinished run; continue it with llmquant quantize --resume")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; it is not a model")
    looks_local = isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}")
