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
from llmquant.files import parse_object, read_plain


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
    """One finished shard: its file, the bytes in it, the names of its tensors and its quantized layers.

    Attributes:
        edits: sha256 of the file of edits that its tensors were made with, see `edits`; "" where there were none.
    """

    file: str
    bytes: int
    tensors: list[str]
    layers: dict[str, LayerRecord]
    edits: str = ""


class Journal:
    """Append-only; every line reaches the disk before the next piece of work starts."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        """Open or create the journal of the run that `identity` describes.

        Raises:
            OutputError: if the journal belongs to another run; the message names what differs.
        """
        self._path = path
        lines = self._read() if path.exists() else []
        if lines:
            _require_same(lines[0], identity, path)
        else:
            self._append(identity)
        try:
            shards = [_shard(line) for line in lines[1:]]
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise self._damaged() from error
        self.shards = {shard.file: shard for shard in shards}

    def record(self, shard: ShardRecord) -> None:
        """Note a finished shard."""
        self._append(asdict(shard))
        self.shards[shard.file] = shard

    def _read(self) -> list[dict[str, Any]]:
        data = read_plain(self._path, OutputError)
        whole = data[: data.rfind(b"\n") + 1]
        try:
            lines = [parse_object(line, "a line", OutputError) for line in whole.split(b"\n")[:-1]]
        except OutputError as error:
            raise self._damaged() from error
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        return lines

    def _damaged(self) -> OutputError:
        return OutputError(f"{self._path} is damaged; delete the folder {self._path.parent} and start again")

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}; --resume continues from here") from error


def _shard(line: dict[str, Any]) -> ShardRecord:
    layers = {name: LayerRecord(**record) for name, record in line["layers"].items()}
    shard = ShardRecord(**{**line, "layers": layers})
    # A name with a folder in it could lead outside the folder of the run.
    plain = isinstance(shard.file, str) and Path(shard.file).name == shard.file and "\0" not in shard.file
    if not plain or type(shard.bytes) is not int or not all(isinstance(name, str) for name in shard.tensors):
        raise ValueError("not what a run notes")
    return shard


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
