"""`llmquant verify`: is a quantized folder still what was written, by the digests that llmquant.json holds?

Loading checks names, dtypes and shapes, which costs nothing. What only the bytes tell, such as two swapped tensors, a
scale that is no number or another group size in config.json, takes reading everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmquant import formats
from llmquant.engine.layer import digest
from llmquant.engine.output.folder import PROVENANCE
from llmquant.engine.output.verify import hash_bytes, hash_file
from llmquant.errors import CheckpointError
from llmquant.files import read_json
from llmquant.formats import DEFAULT
from llmquant.formats.base import Format, Written
from llmquant.models.hub import locate
from llmquant.spec import Scheme
from llmquant.words import one_a_line


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found to be as it was written.

    Attributes:
        tensors: how many the folder holds; each was read, and is finite where it is a float.
        digests: how many of them were compared with a digest, by themselves or as part of a layer.
        files: how many files beside the tensors were, config.json and the tokenizer's.
        note: what could not be checked, and why; empty if nothing.
    """

    tensors: int
    digests: int
    files: int
    note: str


def verify_folder(source: str | Path) -> Verified:
    """Read every tensor of a quantized folder, and compare it with what llmquant.json says was written.

    `source` is a folder, or a hub id.

    Raises:
        CheckpointError: naming the files and tensors that are missing, foreign, changed, or hold numbers that are none.
    """
    folder = Path(source).expanduser()
    if not (folder / PROVENANCE).is_file():  # a folder of any format has it, and `locate` knows one format
        folder = locate(source)
    file = folder / PROVENANCE
    written = read_json(file) if file.exists() else {}
    format_ = _format(written.get("recipe"))
    found = format_.open(folder)
    hashes, files = _strings(written.get("tensors")), _strings(written.get("files"))
    problems = list(_files(folder, files))
    schemes = {} if problems else found.schemes()  # of a config.json that is the one that was written
    metadata = written.get("metadata")
    if isinstance(metadata, Mapping):
        problems += _metadata(found.metadata, metadata)
    problems += [*_names(found, hashes), *_numbers(found, hashes)]
    checked = {name for name in found.tensors if name in hashes}
    if not hashes:
        problems += _layers(format_, found, schemes, written.get("layers"), checked)
    if problems:
        raise CheckpointError(f"{folder} is not what was written:{one_a_line(problems)}")
    note = _note(len(found.tensors) - len(checked), bool(written))
    if found.metadata and not isinstance(metadata, Mapping):
        note += f"{'; ' if note else ''}{PROVENANCE} does not say which metadata was written, so it was not checked"
    return Verified(len(found.tensors), len(checked), len(files), note)


def _format(recipe: Any) -> Format:
    name = recipe.get("format", DEFAULT) if isinstance(recipe, Mapping) else DEFAULT
    return formats.find(name if name in formats.names() else DEFAULT)


def _note(left: int, has_provenance: bool) -> str:
    if not left:
        return ""
    why = "was written by a version that kept none for them" if has_provenance else "is missing"
    return (
        f"{left} tensors have no digest to compare with, as {PROVENANCE} {why}; of them only names, dtypes, shapes and "
        "that they hold numbers were checked"
    )


def _strings(found: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, Mapping) else {}


def _files(folder: Path, hashes: Mapping[str, str]) -> Iterator[str]:
    for name, wanted in hashes.items():
        file = folder / Path(name).name  # and nothing outside of the folder
        if not file.is_file():
            yield f"{name}: is missing"
        elif hash_file(file) != wanted:
            yield f"{name}: differs from the file that was written"


def _metadata(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(found.keys() | wanted.keys()):
        now, then = (json.dumps(each[key]) if key in each else "missing" for each in (found, wanted))
        if now != then:  # as text, where 1 is not 1.0
            yield f"metadata {key}: is {now}, was written as {then}"


def _names(found: Written, hashes: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(hashes.keys() - found.tensors.keys()):
        yield f"{name}: is missing"
    if hashes:
        for name in sorted(found.tensors.keys() - hashes.keys()):
            yield f"{name}: was not written by this run"


def _numbers(found: Written, hashes: Mapping[str, str]) -> Iterator[str]:
    for name in found.tensors:
        tensor = found.read(name)
        if name in hashes and hash_bytes(tensor) != hashes[name]:
            yield f"{name}: its bytes, dtype or shape differ from those that were written"
        elif name not in hashes and not _finite(tensor):
            yield f"{name}: holds NaN or infinity"


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.float()).all())


def _layers(
    format_: Format, found: Written, schemes: Mapping[str, Scheme], records: Any, checked: set[str]
) -> Iterator[str]:
    """Quantized layers by their own digests, of folders that have no others; or at least that they can be decoded."""
    records = records if isinstance(records, Mapping) else {}
    for base, scheme in schemes.items():
        names = format_.names(f"{base}.weight", scheme)
        try:
            decoded = digest(found.decode_reference(base, {name: found.read(name) for name in names}, scheme))
        except CheckpointError as error:
            yield str(error)
            continue
        wanted = records.get(base, {}).get("digest")
        if wanted is not None:
            checked.update(names)
            if decoded != wanted:
                yield f"{base}: does not decode to what was written"
