"""Which files of a result are published, and what must not be.

Nothing goes by its suffix: a file goes if the run wrote it, or if it is a card or a licence. The rest is named and
refused, so that a folder into which somebody put his keys or his data never leaves the machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llmquant.by_name import is_file
from llmquant.engine.output.folder import PROVENANCE
from llmquant.errors import OutputError
from llmquant.models.checkpoint import INDEX
from llmquant.models.config_file import NAME as CONFIG
from llmquant.words import one_a_line

CARD = "README.md"
WEIGHTS = (".safetensors", ".gguf")
_LEGAL = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)([._-][\w.-]*)?", re.IGNORECASE)
_LEFT_OUT = {".git", ".gitattributes", ".cache"}  # bookkeeping of git and of the hub
_SCANNED = 64 << 20  # bytes of one file that are searched
_SECRETS = {
    "a Hugging Face token": rb"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}",
    "a GitHub token": rb"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{36,}",
    "an API key": rb"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{32,}",
    "an AWS access key": rb"(?<![A-Za-z0-9])AKIA[0-9A-Z]{16}(?![0-9A-Za-z])",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}


@dataclass(frozen=True, slots=True)
class Upload:
    """Names of what goes: files with weights first, then everything that makes the repository a model."""

    weights: tuple[str, ...]
    others: tuple[str, ...]


def collect(folder: Path, written: Mapping[str, Any], weights: Sequence[str], *, include: Sequence[str] = ()) -> Upload:
    """Sort the files of a finished result.

    `written` is what its llmquant.json says, `weights` are the files that hold its tensors, `include` patterns (as of a
    shell) of further files that shall go.

    Raises:
        OutputError: names strays, links that lead out of the folder, and files that hold something like a secret.
    """
    known = {CONFIG, PROVENANCE, INDEX, CARD, *weights, *written.get("files", {})}
    others, problems = [], []
    for path in sorted(_all(folder)):
        name = path.relative_to(folder).as_posix()
        if not name.isprintable():
            problems.append(f"{name!r}: has a name that not every system can hold")
        elif _leads_out(path, folder):
            problems.append(f"{name}: is a link that leads out of the folder")
        elif not path.is_file():
            problems.append(f"{name}: is no ordinary file")
        elif not (name in known or is_legal(name) or any(fnmatch(name, pattern) for pattern in include)):
            problems.append(f"{name}: was not written by the run; move it away, or name it with --include")
        elif name not in weights:
            others.append(name)
            problems += [f"{name}: holds what looks like {kind}" for kind in _secrets(path)]
    if problems:
        raise OutputError(f"{folder} is not published:{one_a_line(problems)}")
    return Upload(tuple(sorted(weights)), tuple(others))


def is_legal(name: str) -> bool:
    """Whether a file is a licence or the like."""
    return bool(_LEGAL.fullmatch(name))


def _all(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in _LEFT_OUT:
            continue
        if path.is_dir() and not path.is_symlink():
            yield from (each for each in path.rglob("*") if each.is_symlink() or not each.is_dir())
        else:
            yield path


def _leads_out(path: Path, folder: Path) -> bool:
    try:
        return not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to itself; RuntimeError before Python 3.13
        return True


def _secrets(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        data = file.read(_SCANNED).replace(b"\0", b"")  # so that text in UTF-16 is text
    for kind, pattern in _SECRETS.items():
        if re.search(pattern, data):
            yield kind


def published(made: Mapping[str, Any], base: str) -> dict[str, Any]:
    """What llmquant.json says, without paths of this machine: of a folder or file only its name is left.

    `base` is what the model is called that was quantized.
    """
    paths = {str(made["source"]): base} if "/" in str(made["source"]) else {}
    training = made.get("training") or {}
    texts = (made["recipe"].get("calibration") or {}).get("dataset"), training.get("text"), training.get("valid_text")
    for text in filter(None, texts):
        if not text.startswith(("hub:", "builtin:")) and "/" in text:
            paths[text] = Path(text).name
    teacher = training.get("teacher") or ""
    if teacher.startswith((".", "/", "~")) or teacher.count("/") > 1 or ("/" in teacher and Path(teacher).is_dir()):
        paths[teacher] = Path(teacher).name
    paths |= {method: Path(method).name for method in _methods(made["recipe"]) if is_file(method)}
    return _renamed(dict(made), paths) | {"source": base}


def _methods(recipe: Any) -> Iterator[str]:
    inner = recipe.values() if isinstance(recipe, Mapping) else recipe if isinstance(recipe, list) else ()
    if isinstance(recipe, Mapping) and "method" in recipe:
        yield recipe["method"]
    for each in inner:
        yield from _methods(each)


def _renamed(value: Any, paths: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _renamed(each, paths) for key, each in value.items()}
    if isinstance(value, list):
        return [_renamed(each, paths) for each in value]
    if isinstance(value, str):
        for path, word in paths.items():
            value = value.replace(path, word)
    return value
