"""After writing: reopen the result, decode it with the independent reference, and compare it with what was meant."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from llmquant.engine.layer import digest
from llmquant.engine.output.journal import Journal
from llmquant.engine.output.units import Unit
from llmquant.errors import OutputError
from llmquant.files import read_plain
from llmquant.formats.base import Format
from llmquant.models.source import WeightSource
from llmquant.progress import Progress
from llmquant.spec import KEEP
from llmquant.words import dtype_name


def verify(
    folder: Path, units: Sequence[Unit], journal: Journal, source: WeightSource, format_: Format, progress: Progress
) -> dict[str, str]:
    """Compare a written folder with the journal's digests and with the source, tensor by tensor.

    `source` has all edits of transforms: that what stays equals it proves that they were written. Returns the
    `hash_bytes` of each tensor, by name.

    Raises:
        OutputError: naming the first tensor that is not what was meant.
        CheckpointError: if the folder cannot be read as a result of this format.
    """
    written = format_.open(folder)
    expected = {name for record in journal.shards.values() for name in record.tensors}
    if written.tensors.keys() != expected:
        odd = sorted(written.tensors.keys() ^ expected)[0]
        raise OutputError(f"{folder}: tensor {odd} is {'missing' if odd in expected else 'not ours'}; {_ADVICE}")
    hashes = {}
    for unit in units:
        layers = journal.shards[unit.file].layers
        for row, key in unit.quantized:
            name = key.removesuffix(".weight")
            tensors = {part: written.read(part) for part in format_.names(key, row.scheme)}
            if digest(written.decode_reference(name, tensors, row.scheme)) != layers[row.name].digest:
                raise OutputError(f"{folder}: {name} does not decode to what was written; {_ADVICE}")
            hashes |= {part: hash_bytes(tensor) for part, tensor in tensors.items()}
        for key in unit.copied:
            (name,) = format_.names(key, KEEP)
            stored, meant = written.read(name), source.read(key)
            hashes[name] = hash_bytes(stored)
            kept = written.restore(key, stored)
            if hash_bytes(kept) != hash_bytes(meant.to(format_.kept_dtype(tuple(meant.shape), meant.dtype))):
                raise OutputError(f"{folder}: {key} differs from the source; {_ADVICE}")
            if kept.is_floating_point() and kept.isnan().any():
                progress.note(f"{key} holds NaN, copied from the source: unless no model uses it, all logits are NaN")
        progress.step(unit.file)
    return hashes


_ADVICE = "the disk or the memory is failing, or another program writes there; delete the folder and quantize again"


def hash_bytes(tensor: Tensor) -> str:
    """The sha256 of a tensor: of its dtype and shape, as its bytes mean something else in others, and of its bytes."""
    kind = f"{dtype_name(tensor.dtype)} {list(tensor.shape)}\n"
    found = hashlib.sha256(kind.encode())
    found.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def hash_file(file: Path) -> str:
    """The sha256 of a small file.

    Raises:
        CheckpointError: if it cannot be read.
    """
    return hashlib.sha256(read_plain(file)).hexdigest()
