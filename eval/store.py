"""What an evaluation has finished, on disk, so that a killed one goes on: scores of batches, sections of metrics.

A part is one file, named by what it is, that begins with the SHA-256 of the rest and appears in one step, whole or not
at all. Damage is noticed and the part measured again. Parts lie in a folder named by a hash of all that decides the
numbers (models, windows, options, versions), so those of another evaluation are never taken for them.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from glob import escape
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from pydantic import TypeAdapter, ValidationError

from llmquant.errors import LlmquantError, OutputError
from llmquant.eval.metrics.base import Metric, Section
from llmquant.eval.scoring import TokenScores
from llmquant.files import open_plain, read_plain
from llmquant.progress import Progress


class Store:
    """The parts of one candidate, below `root`; `identity` is what decides its numbers, as JSON."""

    def __init__(self, root: Path, identity: Mapping[str, Any], progress: Progress) -> None:
        text = json.dumps(identity, sort_keys=True, default=str)
        self._folder = root / sha256(text.encode()).hexdigest()[:20]
        self._progress = progress

    def scores(self, name: str) -> TokenScores | None:
        """The scores of a batch, if they are there."""
        data = self.get(f"scores {name}")
        try:
            if data is None:
                return None
            arrays = np.load(io.BytesIO(data), allow_pickle=False)
            return TokenScores(*(arrays[each.name] for each in fields(TokenScores)))
        except (ValueError, KeyError, OSError, BadZipFile):
            return self._damaged(f"scores {name}")

    def keep_scores(self, name: str, scores: TokenScores) -> None:
        """Write the scores of a batch."""
        stream = io.BytesIO()
        np.savez(stream, **{each.name: getattr(scores, each.name) for each in fields(TokenScores)})
        self.put(f"scores {name}", stream.getvalue())

    def section(self, metric: Metric, name: str) -> Section | None:
        """What a metric measured, if it is there."""
        data = self.get(f"{metric.name} {name}")
        try:
            return None if data is None else TypeAdapter(metric.section).validate_json(data)
        except ValidationError:
            return self._damaged(f"{metric.name} {name}")

    def keep_section(self, metric: Metric, name: str, section: Section) -> None:
        """Write what a metric measured."""
        self.put(f"{metric.name} {name}", json.dumps(asdict(section), allow_nan=False).encode())

    def get(self, name: str) -> bytes | None:
        """A part, if it is there and whole."""
        file = self._folder / name
        if not file.exists():
            return None
        try:
            data = read_plain(file)
        except LlmquantError:
            data = b""
        digest, content = data[:32], data[32:]
        return content if digest == sha256(content).digest() else self._damaged(name)

    def put(self, name: str, content: bytes) -> None:
        """Write a part.

        Raises:
            OutputError: if it cannot be written, as on a full disk.
        """
        write_whole(self._folder / name, sha256(content).digest() + content)

    def _damaged(self, name: str) -> None:
        self._progress.note(f"{self._folder / name} is damaged; this part is measured again")


def write_whole(file: Path, content: bytes) -> None:
    """Write a file that is there whole, or as it was before.

    Raises:
        OutputError: if it cannot be written, as on a full disk.
    """
    new = file.with_name(f"{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
    except OSError as error:
        raise OutputError(
            f"{file}: cannot be written ({error.strerror or error}); make room or mend it, and run the same command "
            "again: what is finished is kept"
        ) from error


def fingerprint(folder: Path) -> str:
    """A hash of a checkpoint without reading its weights: its config, and the files' headers, sizes and times."""
    found = sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        facts = file.stat()
        found.update(f"{file.name} {facts.st_size} {facts.st_mtime_ns} ".encode())
        with open_plain(file) as stream:
            found.update(stream.read(1 << 20))
    return found.hexdigest()


def digest_of_data(path: Path) -> str:
    """A hash of the data of a task: all files of a folder, or a file and those beside it that begin with its stem."""
    found = sha256(str(path).encode())
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{escape(path.stem)}*")
    for file in sorted(each for each in files if each.is_file() and "__pycache__" not in each.parts):
        found.update(f"{file.name} {file.stat().st_size} ".encode())
        with open_plain(file) as stream:
            while block := stream.read(1 << 20):
                found.update(block)
    return found.hexdigest()
