"""config.json, read once: what a run saw is what its result carries, whatever happens to the file meanwhile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmquant.errors import CheckpointError
from llmquant.files import parse_object, read_plain

NAME = "config.json"
# More layers than any model has: building even the empty skeleton of 10**9 of them would never end.
MAX_LAYERS = 10_000
_LAYERS = re.compile(r"(?:^|_)(?:layers?|depth|blocks?)$")
# Keys by which transformers reads other files than those of the folder, and what it would read.
_ELSEWHERE = {
    "transformers_weights": "other weights than those that stand beside it",
    "configuration_files": "another configuration",
}
# Keys whose value may name a kernel of the hub, which is fetched and run. Plain words ("eager") are our own affair.
_CODE = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


@dataclass(frozen=True)
class ConfigFile:
    """One reading of a config.json."""

    file: Path
    text: bytes
    data: dict[str, Any] = field(repr=False)

    @classmethod
    def read(cls, file: Path) -> ConfigFile:
        """Read and check a config.json.

        Raises:
            CheckpointError: if it cannot be read, or makes transformers read other files or run other code.
        """
        text = read_plain(file, limit=64 << 20)
        data = parse_object(text, str(file))
        for path, key, value in _entries(data, ""):
            if key in _ELSEWHERE and value is not None:
                raise CheckpointError(
                    f"{file}: {path}{key} is {_short(value)}, which makes transformers read {_ELSEWHERE[key]}; "
                    "llmquant reads the files of the folder only. Remove the key, and name the files as is usual"
                )
            if isinstance(value, int) and value > MAX_LAYERS and _LAYERS.search(key):
                raise CheckpointError(f"{file}: {path}{key} is more than {MAX_LAYERS}, which cannot be right")
            if key in _CODE and _names_a_kernel(value):
                raise CheckpointError(
                    f"{file}: {path}{key} is {_short(value)}, code of the hub that would be fetched and run; remove "
                    "the key"
                )
        return cls(file, text, data)


def leads_outside(file: Path) -> bool:
    """Whether a file of a model folder is a link to somewhere else.

    The cache of the hub is made of links, to the folder `blobs` beside that of the snapshots, so these are inside.
    """
    folder = file.parent.resolve()
    target = file.resolve()
    if target.is_relative_to(folder):
        return False
    blobs = folder.parent.parent / "blobs"
    return not (folder.parent.name == "snapshots" and target.parent == blobs)


def _entries(data: dict[str, Any], path: str) -> Iterator[tuple[str, str, Any]]:
    for key, value in data.items():
        yield path, key, value
        if isinstance(value, dict):
            yield from _entries(value, f"{path}{key}.")


def _names_a_kernel(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_names_a_kernel, value.values()))
    return isinstance(value, str) and "/" in value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
