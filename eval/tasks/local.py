"""Tasks from files that lie here: LAMBADA, PIQA and BLiMP as their authors publish them, with our own definitions.

What is asked and how it is scored is as in the harness's own definitions of the same names; only the data comes from
elsewhere, since without a network it cannot be fetched.
"""

from __future__ import annotations

import json
import lzma
import re
import tarfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from llmquant.data.text import read_text, utf8
from llmquant.errors import DataError
from llmquant.words import did_you_mean, listed

FAMILIES = ("lambada", "piqa", "blimp")
Rows = list[dict[str, Any]]
_SURROGATE = re.compile("[\ud800-\udfff]")


class Definition(NamedTuple):
    """A task: what the harness is told, and its documents."""

    config: dict[str, Any]
    rows: Rows


def family(name: str) -> str | None:
    """The name under which the file of a task is given; None where it is none of ours."""
    if name == "blimp" or name.startswith("blimp_"):
        return "blimp"
    return {"lambada": "lambada", "lambada_openai": "lambada", "piqa": "piqa"}.get(name)


def definitions(name: str, path: Path) -> list[Definition]:
    """The tasks of a name: one, or all sets of `blimp`.

    Raises:
        DataError: if the file is not what the task's authors publish.
    """
    if not path.exists():
        raise DataError(f"the data of the task {name!r} is not there: {path}")
    kind = family(name)
    if kind == "blimp":
        sets = _blimp(path, name.removeprefix("blimp").removeprefix("_"))
        return [Definition({**_config("blimp"), "task": f"blimp_{each}"}, rows) for each, rows in sets.items()]
    if kind == "piqa":
        return [Definition(_config("piqa"), _piqa(path))]
    return [Definition(_config("lambada_openai"), _lambada(_only(path, "*.jsonl")))]


def _config(name: str) -> dict[str, Any]:
    return yaml.safe_load(files("llmquant.eval.tasks").joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


def _lambada(file: Path) -> Rows:
    rows = _rows(file, {"text": str})
    for row in rows:
        before, _, last = row["text"].rpartition(" ")  # as the definition cuts it
        if not before.strip() or not last.strip():
            raise DataError(f"{file}: {row['text'][-40:]!r} does not end with a word after others; LAMBADA asks for it")
    return rows


def _piqa(path: Path) -> Rows:
    """Lines of goals and solutions; labels in them, or one a line in the file beside."""
    questions = _only(path, "*.jsonl")
    rows = _rows(questions, {"goal": str, "sol1": str, "sol2": str}, "label")
    beside = questions.with_name(f"{questions.stem}-labels.lst")
    if any("label" not in row for row in rows):
        if not beside.is_file():
            raise DataError(f"{questions} has no labels, and {beside.name} is not beside it")
        labels = read_text(beside).split()
        if len(labels) != len(rows):
            raise DataError(f"{beside} has {len(labels)} labels for {len(rows)} questions")
        rows = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    if wrong := {str(row["label"]) for row in rows} - {"0", "1"}:
        raise DataError(f"labels of PIQA are 0 or 1; {questions} has {listed(sorted(wrong)[:5])}")
    return [{**row, "label": int(row["label"])} for row in rows]


def _blimp(path: Path, wanted: str) -> dict[str, Rows]:
    """Sets by name, of a folder or an archive of NAME.jsonl; only the one that is wanted, if any."""
    found = _members(path)
    if wanted and wanted not in found:
        raise DataError(f"{path} has no set {wanted!r}{did_you_mean(wanted, found) or f'; it has {len(found)} others'}")
    if not found:
        raise DataError(f"{path} holds no .jsonl file; BLiMP has one for each set")
    names = [wanted] if wanted else sorted(found)
    columns = {"sentence_good": str, "sentence_bad": str}
    return {name: _parsed(found[name](), f"{path}: {name}", columns) for name in names}


def _members(path: Path) -> Mapping[str, Callable[[], str]]:
    """How to read each .jsonl file of a folder or an archive, or the one file that is given, by stem."""
    if path.is_dir():
        return {file.stem: partial(read_text, file) for file in path.rglob("*.jsonl")}
    if path.suffix == ".jsonl":
        return {path.stem: partial(read_text, path)}
    try:
        with tarfile.open(path) as archive:
            return {
                Path(member.name).stem: partial(utf8, content.read(), f"{path}: {member.name}")
                for member in archive
                if member.name.endswith(".jsonl") and (content := archive.extractfile(member))
            }
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise DataError(f"{path} is neither a .jsonl file, a folder nor an archive of such: {error}") from error


def _only(path: Path, pattern: str) -> Path:
    """The file itself, or the only one of a folder."""
    if not path.is_dir():
        return path
    found = sorted(path.glob(pattern))
    if len(found) != 1:
        raise DataError(f"{path} has {len(found)} files {pattern}; name the file")
    return found[0]


def _rows(file: Path, columns: Mapping[str, type], *optional: str) -> Rows:
    return _parsed(read_text(file), str(file), columns, *optional)


def _parsed(text: str, place: str, columns: Mapping[str, type], *optional: str) -> Rows:
    """The columns of all lines, and the optional ones where they are: others may hold anything."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: texts may hold other separators
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # a number of 4,301 digits is a ValueError
            raise DataError(f"{place}, line {number}, is not JSON: {error}") from None
        if not isinstance(row, dict) or any(not isinstance(row.get(name), kind) for name, kind in columns.items()):
            raise DataError(f"{place}, line {number}, lacks one of {listed(columns)}")
        if any(_SURROGATE.search(row[name]) for name in columns):
            raise DataError(f"{place}, line {number}, holds half a surrogate pair; write it whole")
        rows.append({name: row[name] for name in (*columns, *optional) if name in row})
    if not rows:
        raise DataError(f"{place} is empty")
    return rows
