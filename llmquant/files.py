"""The border between files of other people and the rest: what is read here is a plain file, bounded, and whole.

A folder from anywhere may hold a named pipe (whose opening waits for ever), a device, a link to a file elsewhere, JSON
nested a million deep or a number of a million digits. Each of these ends here, in an error of llmquant.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from llmquant.errors import CheckpointError, LlmquantError

MAX_JSON_BYTES = 256 << 20
MAX_DEPTH = 64


def check_name(path: Path, kind: type[LlmquantError] = CheckpointError) -> None:
    """Refuse a path that no file can have, before `Path.exists` stumbles over it.

    Raises:
        LlmquantError: of `kind`, if it holds a NUL or a name that is too long.
    """
    try:
        path.lstat()
    except ValueError as error:
        raise kind(f"{str(path)!r}: no file can have this name ({error})") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise kind(f"{str(path)[:300]!r}...: no file can have this name ({error.strerror})") from error


def open_plain(file: Path, kind: type[LlmquantError] = CheckpointError, *, buffering: int = -1) -> BinaryIO:
    """Open a file for reading, if it is a plain one; links are followed.

    Raises:
        LlmquantError: of `kind`, if it cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise kind(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error}); check the path") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise kind(f"{file}: is not a plain file but a {_kind_of(file)}; put the file itself there")
    return os.fdopen(descriptor, "rb", buffering=buffering)


def read_plain(file: Path, kind: type[LlmquantError] = CheckpointError, *, limit: int = MAX_JSON_BYTES) -> bytes:
    """All bytes of a plain file.

    Raises:
        LlmquantError: of `kind`, if it cannot be read, is no plain file, or holds more than `limit` bytes.
    """
    try:
        with open_plain(file, kind) as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        if isinstance(error, LlmquantError):
            raise
        raise kind(f"{file}: cannot be read ({error.strerror or error})") from error
    if len(data) > limit:
        raise kind(f"{file}: has more than {limit} bytes, too many for what it should be")
    return data


def parse_json(data: bytes, what: str, kind: type[LlmquantError] = CheckpointError) -> Any:
    """The value that JSON text in UTF-8 holds, nested `MAX_DEPTH` deep at most; errors call it `what`.

    Raises:
        LlmquantError: of `kind`, if it is not JSON, or more than a program should have to take.
    """
    try:
        value = json.loads(data.decode("utf-8"))
        _check_depth(value, MAX_DEPTH)
    except (ValueError, RecursionError) as error:  # a number of 4,301 digits is a ValueError
        raise kind(f"{what}: is not JSON ({error}); the file is damaged, fetch it again") from error
    return value


def read_json(file: Path, kind: type[LlmquantError] = CheckpointError) -> dict[str, Any]:
    """Read a JSON object, such as the config of a model folder.

    Raises:
        LlmquantError: of `kind`, if it cannot be read or is no JSON object.
    """
    return parse_object(read_plain(file, kind), str(file), kind)


def parse_object(data: bytes, what: str, kind: type[LlmquantError] = CheckpointError) -> dict[str, Any]:
    """As `parse_json`, for an object.

    Raises:
        LlmquantError: of `kind`, also if it is JSON but no object.
    """
    content = parse_json(data, what, kind)
    if not isinstance(content, dict):
        raise kind(f"{what}: holds a JSON {type(content).__name__}, an object was expected")
    return content


def _check_depth(value: Any, left: int) -> None:
    if not isinstance(value, (dict, list)):
        return
    if not left:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    for item in value.values() if isinstance(value, dict) else value:
        _check_depth(item, left - 1)


def _kind_of(file: Path) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(file.stat().st_mode), "device")
