"""The output folder: nothing of ours is visible under its name until everything is there.

A run works in OUT.partial, beside OUT, and renames it at the end. OUT.partial holds a journal, so that a killed run can
go on; a lock on it keeps two runs apart. A result that is replaced waits for its end in OUT.partial, too: what lies
beside these two folders is never touched.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from llmquant.engine.output.journal import Journal
from llmquant.errors import OutputError
from llmquant.files import read_json
from llmquant.words import bytes_text

JOURNAL, PROVENANCE, EDITS = "journal.jsonl", "llmquant.json", "edits"
TRAINING = "training"  # checkpoints of a run that trains
REPLACED = "replaced"


def is_finished(folder: Path) -> bool:
    """Whether `folder` is a finished result of llmquant."""
    return (folder / PROVENANCE).is_file() and (folder / "config.json").is_file()


class OutputFolder:
    """A context manager around one run's output; leaving it unlocks, and never deletes work."""

    def __init__(self, out: Path) -> None:
        with _reported(f"{_shown(out)} cannot be the folder of a result"):
            self.out = out.resolve()  # through a link, to where the result really lies
        if not self.out.name:
            raise OutputError(f"{out} cannot be the folder of a result; give the name of a new one")
        self.partial = self.out.with_name(f"{self.out.name}.partial")
        self._lock: int | None = None

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse what must not be touched, before any work.

        Raises:
            OutputError: if OUT is not ours, is finished already, or an interrupted run is there and `resume` is off.
        """
        with _reported(f"{_shown(self.out)} cannot be the folder of a result"):
            self._check_out(resume=resume, overwrite=overwrite)
            self._check_partial(resume=resume, overwrite=overwrite)

    def _check_out(self, *, resume: bool, overwrite: bool) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise OutputError(f"{self.out} is a file; give a folder that does not exist yet")
        if self.out.is_mount():
            raise OutputError(f"{self.out} is a mount point, which cannot be replaced; give a folder inside it")
        if _holds_something(self.out):
            if not is_finished(self.out):
                raise OutputError(f"{self.out} exists and was not made by llmquant; give another folder")
            if resume and not overwrite and self.partial.exists():
                raise OutputError(
                    f"{self.out} holds a finished result that an interrupted run was to replace; "
                    "--resume --overwrite continues it"
                )
            if not (overwrite or resume):
                raise OutputError(
                    f"{self.out} holds a finished result; give another folder, or --overwrite (overwrite=True)"
                )

    def _check_partial(self, *, resume: bool, overwrite: bool) -> None:
        if self.partial.exists() and not self.partial.is_dir():
            raise OutputError(f"{self.partial} is a file, where an unfinished run would lie; move it away")
        if _holds_something(self.partial):
            if not (self.partial / JOURNAL).is_file():
                raise OutputError(f"{self.partial} exists and is not an interrupted run; move it away")
            if not (resume or overwrite):
                older = f", and the result that it was to replace, in {REPLACED!r}" if self._replaced.exists() else ""
                raise OutputError(
                    f"{self.partial} holds an interrupted run{older}; --resume (resume=True) continues it, "
                    "--overwrite (overwrite=True) drops it"
                )

    def begin(self, identity: dict[str, Any], *, resume: bool, overwrite: bool) -> Journal:
        """Make or reopen OUT.partial, lock it, and return the journal.

        Raises:
            OutputError: as `check`, or if another process works in the folder, or the journal is of another run.
        """
        self.check(resume=resume, overwrite=overwrite)
        with _reported(f"cannot write to {self.partial}"):
            if overwrite and not resume and self.partial.exists():
                self._remove_partial()
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.partial, os.O_RDONLY)
        self._take_lock()
        return Journal(self.partial / JOURNAL, identity)

    def _take_lock(self) -> None:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"another process is working in {self.partial}") from error
        except OSError as error:
            raise OutputError(f"cannot lock {self.partial} ({error.strerror}); use another disk") from error

    def _remove_partial(self) -> None:
        self._lock = os.open(self.partial, os.O_RDONLY)
        self._take_lock()
        if self._replaced.exists() and not _holds_something(self.out):
            self._replaced.rename(self.out)
        # Emptied first and removed last, the journal marks the folder as ours whenever this is interrupted.
        (self.partial / JOURNAL).write_bytes(b"")
        _empty(self.partial, but=JOURNAL)
        (self.partial / JOURNAL).unlink()
        self.partial.rmdir()
        self.__exit__(None, None, None)

    def require_space(self, needed: int) -> None:
        """Refuse to start when the disk cannot hold what is still to be written.

        Raises:
            OutputError: naming what is needed and what is free.
        """
        free = shutil.disk_usage(self.partial).free
        if free < needed:
            raise OutputError(
                f"{self.partial.parent} has {bytes_text(free)} free, but {bytes_text(needed)} are still to "
                "be written; free some space or choose another disk"
            )

    def finish(self) -> None:
        """Give the finished folder its name; an older result is replaced.

        The journal goes last: whenever this is interrupted, either OUT.partial still has its journal, or OUT is whole.
        """
        with _reported(f"cannot give {self.out} its name", "; --resume tries again"):
            if _holds_something(self.out):
                if self._replaced.exists():
                    shutil.rmtree(self._replaced)
                self.out.rename(self._replaced)
            self.partial.rename(self.out)
            parent = os.open(self.out.parent, os.O_RDONLY)
            os.fsync(parent)
            os.close(parent)
            self.tidy()

    def tidy(self) -> None:
        """Remove what an interrupted `finish` left behind in a finished folder, where its journal still is."""
        if (self.out / JOURNAL).exists():
            for folder in (REPLACED, EDITS, TRAINING):
                if (self.out / folder).exists():
                    shutil.rmtree(self.out / folder)
            (self.out / JOURNAL).unlink()

    @property
    def _replaced(self) -> Path:
        return self.partial / REPLACED

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def _reported(what: str, advice: str = "") -> Iterator[None]:
    """Turn what the system says of a path into an `OutputError`; ValueError is its word for a NUL in a name."""
    try:
        yield
    except OutputError:
        raise
    except (OSError, ValueError) as error:
        raise OutputError(f"{what}: {getattr(error, 'strerror', None) or error}{advice}") from error


def _shown(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _holds_something(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def _empty(folder: Path, but: str) -> None:
    for path in folder.iterdir():
        if path.name != but:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def identity(made: Mapping[str, Any]) -> str:
    """Of the tensors of a finished folder, from what its llmquant.json says: equal for equal tensors."""
    digests = json.dumps(made.get("tensors"), sort_keys=True)
    return f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}"


def read_provenance(folder: Path) -> dict[str, Any]:
    """What llmquant.json says about a finished folder.

    Raises:
        OutputError: if the folder is not a finished result of llmquant, or the file is damaged.
    """
    try:
        facts = read_json(folder / PROVENANCE, OutputError)
    except OutputError as error:
        raise OutputError(
            f"{folder} has no readable {PROVENANCE}; it is not a finished result of llmquant ({error})"
        ) from error
    layers, recipe = facts.get("layers"), facts.get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    known = isinstance(recipe.get("name"), str) and isinstance(recipe.get("budget") or {}, dict)
    losses = [layer.get("loss") if isinstance(layer, dict) else None for layer in _values(layers)]
    if not known or not losses or not all(isinstance(loss, float) for loss in losses):
        raise OutputError(f"{folder / PROVENANCE} is damaged: it lacks the recipe or the loss of a layer")
    return facts


def _values(mapping: object) -> list[Any]:
    return list(mapping.values()) if isinstance(mapping, dict) else []
