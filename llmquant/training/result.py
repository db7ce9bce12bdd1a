"""The end of training: the packed model, its tokenizer and llmquant.json, read again and compared."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from llmquant.compat.quantizers import made_in_memory
from llmquant.engine.output.check_folder import verify_folder
from llmquant.engine.output.folder import JOURNAL, REPLACED, TRAINING
from llmquant.hf.in_place import copy_tokenizer
from llmquant.hf.provenance import write_provenance
from llmquant.hf.qat import convert_qat, qat_state
from llmquant.memory import peak_resident_bytes


def write_result(
    model: PreTrainedModel,
    dtype: torch.dtype,
    folder: Path,
    identity: Mapping[str, Any],
    training: dict[str, Any],
    began: float,
) -> None:
    """Pack a trained model, in place, and write it into the folder of a run.

    `dtype` is that of what is not quantized; `began` is `time.monotonic()` at the start of the run.

    Raises:
        OutputError: if a file is not what the model holds.
        QuantizationError: as `convert_qat`.
    """
    _clear(folder)
    qat_state(model).trained = training
    model.config.use_cache = True
    convert_qat(model.cpu(), dtype)
    model.save_pretrained(folder)
    copy_tokenizer(model, folder)
    cost = {"seconds": round(time.monotonic() - began, 1), "peak_memory_bytes": peak_resident_bytes()}
    write_provenance(model, {**(made_in_memory(model) or {}), "identity": dict(identity), **cost}, folder)
    verify_folder(folder)


def _clear(folder: Path) -> None:
    """Remove what an earlier try may have left, but for what it was made from."""
    for path in folder.iterdir():
        if path.name not in (JOURNAL, REPLACED, TRAINING):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
