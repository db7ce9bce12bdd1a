"""The edits of transforms beside an unfinished run: one file for each unit, so that a resumed run makes the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from llmquant.engine.output.folder import EDITS
from llmquant.engine.output.journal import Journal
from llmquant.errors import OutputError
from llmquant.files import read_plain
from llmquant.formats.safetensors_file import write_bytes_atomic
from llmquant.models.edits import Edit, edits_from_bytes, edits_to_bytes


def write_edits(folder: Path, unit: str, edits: Sequence[Edit]) -> str:
    """Write the edits of one unit and return the sha256 of their file.

    Raises:
        OutputError: if they cannot be written.
    """
    data = edits_to_bytes(edits)
    try:
        (folder / EDITS).mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder / EDITS} ({error.strerror})") from error
    write_bytes_atomic(folder / EDITS / unit, data)
    return hashlib.sha256(data).hexdigest()


def read_edits(folder: Path, journal: Journal) -> list[Edit]:
    """All edits that finished units of an interrupted run were made with.

    Raises:
        OutputError: if a file of them is missing or not the one that was written.
    """
    edits = []
    for record in sorted(journal.shards.values(), key=lambda record: record.file):
        if record.edits:
            file = folder / EDITS / record.file
            try:
                data = read_plain(file, OutputError)
            except OutputError as error:
                raise OutputError(f"{error}; start again with --overwrite") from error
            if hashlib.sha256(data).hexdigest() != record.edits:
                raise OutputError(f"{file} is damaged; start again with --overwrite")
            edits += edits_from_bytes(data)
    return edits
