"""The journal of a run: one JSON line for what the run is, then one for each finished shard.

A line is written only after its shard is safely on disk, so whatever the journal names is whole. A torn last line (the
machine stopped while writing it) is dropped, and its shard is made again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmquant.errors import OutputError


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """What happened to one layer.

    Attributes:
        digest: hash of codes, scales and zeros as they were meant; verification compares the file with it.
        loss: relative error; see `LayerResult`.
        seconds: time spent on rounding.
    """

    scheme: str
    method: str
    digest: str
    loss: float
    seconds: float
    counters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One finished shard: its file, the bytes in it, the names of its tensors and its quantized layers."""

    file: str
    bytes: int
    tensors: list[str]
    layers: dict[str, LayerRecord]


class Journal:
    """Append-only; every line reaches the disk before the next piece of work starts."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        """Open or create the journal of the run that `identity` describes.

        Raises:
            OutputError: if the journal belongs to another run; the message names what differs.
        """
        self._path = path
        self.shards: dict[str, ShardRecord] = {}
        lines = self._read() if path.exists() else []
        if lines:
            _require_same(lines[0], identity, path)
            for line in lines[1:]:
                layers = {name: LayerRecord(**record) for name, record in line.pop("layers").items()}
                self.shards[line["file"]] = ShardRecord(**line, layers=layers)
        else:
            self._append(identity)

    def record(self, shard: ShardRecord) -> None:
        """Note a finished shard."""
        self._append(asdict(shard))
        self.shards[shard.file] = shard

    def _read(self) -> list[dict[str, Any]]:
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except json.JSONDecodeError as error:
            raise OutputError(
                f"{self._path} is damaged; delete the folder {self._path.parent} and start again"
            ) from error

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}; --resume continues from here") from error


def _require_same(begun: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    different = [key for key in now if begun.get(key) != now[key]]
    if different:
        what = "; ".join(f"{key}: {_short(begun.get(key))} then, {_short(now[key])} now" for key in different)
        raise OutputError(
            f"{path.parent} was begun by a different run ({what}); finish it with what it was begun with, or delete it"
        )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
