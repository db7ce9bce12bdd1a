"""The checkpoints that a `Trainer` leaves on its way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import nn

from llmquant.errors import CheckpointError
from llmquant.files import read_json
from llmquant.models.checkpoint import Checkpoint

_STATE = "trainer_state.json"  # the last file that is written


def last_checkpoint(folder: Path) -> Path | None:
    """The newest that is whole; None if there is none."""
    whole = [path for path in folder.glob("checkpoint-*") if _is_whole(path)]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def remove_torn(folder: Path) -> None:
    """Remove those that a killed run, or a machine that went down, left unfinished; training goes on from the others.

    Those that know a better one which is not there any more go too: the result would be another.
    """
    if folder.is_file():
        folder.unlink()
    paths = list(folder.glob("checkpoint-*"))
    whole = {path.name for path in paths if _is_whole(path)}
    for path in paths:
        best = read_state(path).get("best_global_step") if path.name in whole else None
        if path.name not in whole or (best and f"checkpoint-{best}" not in whole):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What the trainer noted: `global_step`, `best_global_step`, `log_history` and so on."""
    return read_json(checkpoint / _STATE)


@torch.no_grad()
def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Fill a prepared model with the tensors of a checkpoint.

    Raises:
        CheckpointError: if it lacks one that is trained, or has a foreign one.
    """
    stored, state = Checkpoint.open(checkpoint, allow_quantized=True), model.state_dict(keep_vars=True)
    filled = set()
    for name in stored.tensors:
        if name not in state:
            raise CheckpointError(f"{checkpoint} has a tensor {name}, which the model lacks; it is another model's")
        state[name].copy_(stored.read(name))
        filled.add(id(state[name]))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in filled:
            raise CheckpointError(f"{checkpoint} has no tensor {name}; it is another model's, or damaged")


def _is_whole(path: Path) -> bool:
    """Files that were not written to their end have no directory there (torch's), or too few bytes (safetensors)."""
    try:
        step = read_state(path).get("global_step")
        Checkpoint.open(path, allow_quantized=True)
    except CheckpointError:
        return False
    sharded = path / "optimizer.bin"  # as FSDP leaves it
    states = [sharded if sharded.exists() else path / "optimizer.pt", path / "scheduler.pt"]
    states += [*path.glob("rng_state*.pth"), *path.glob("pytorch_model*.bin")]
    return path.name == f"checkpoint-{step}" and len(states) > 2 and all(map(is_zipfile, states))
