"""Documents from a text file, a data set on the hub, or the user's own Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from llmquant.data.builtin_text import mixed_documents, python_documents
from llmquant.errors import DataError
from llmquant.files import check_name, read_plain

_HUB_DOCUMENTS = 20_000  # a streamed data set can be endless
_MAX_BYTES = 16 << 30
_COMPRESSED = {".parquet": "parquet", ".json.gz": "json", ".jsonl.gz": "json"}  # what hubs store, by its loader's name


def read_documents(dataset: str, *, split: str | None = None, column: str = "text") -> list[str]:
    """Documents of a data set, in a fixed order.

    `dataset` is a .txt, .jsonl, .json, .json.gz or .parquet file; "builtin:mixed" (shipped, for calibration) or
    "builtin:python" (the standard library's own sources); or a data set of the `datasets` library, streamed (see
    `HubText`). `split` is of a built-in or hub data set, calibration or train by default; `column` the key of the text
    in rows.

    Raises:
        DataError: if there is no such data set, or it holds no text.
    """
    check_dataset(dataset)
    if dataset == "builtin:mixed":
        return mixed_documents(split or "calibration")
    if dataset == "builtin:python":
        return python_documents(split or "calibration")  # pyright: ignore[reportArgumentType]  # checked there
    documents = [text for text in read_rows(dataset, split=split, column=column) if text.strip()]
    if not documents:
        raise DataError(f"{dataset} holds no text")
    return documents


def read_rows(dataset: str, *, split: str | None = None, column: str = "text") -> Iterator[str]:
    """The rows of a file or hub data set as they are, empty ones too; a .txt file is one row.

    Raises:
        DataError: if there is no such data set, or a row of it has no text.
    """
    check_dataset(dataset)
    if dataset.startswith("hub:"):
        text = HubText.parse(dataset)
        where, wanted = f"hub:{text.name}", text.split or split or "train"
        return _library_rows(where, text.column or column, text.name, text.config or None, split=wanted)
    if kind := _COMPRESSED.get("".join(Path(dataset).suffixes[-2:]), _COMPRESSED.get(Path(dataset).suffix)):
        return _library_rows(dataset, column, kind, data_files=dataset, split="train")
    return _file_rows(Path(dataset), column)


class HubText(NamedTuple):
    """A data set of the hub, written "hub:NAME", "hub:NAME:CONFIG:SPLIT:COLUMN" or with parts left empty."""

    name: str
    config: str = ""
    split: str = ""
    column: str = ""

    @classmethod
    def parse(cls, word: str) -> HubText:
        """Take "hub:..." apart.

        Raises:
            DataError: if it has no name, or more than four parts.
        """
        parts = word.removeprefix("hub:").split(":")
        if not parts[0] or len(parts) > len(cls._fields):
            raise DataError(f"cannot read {word!r}; write hub:NAME or hub:NAME:CONFIG:SPLIT:COLUMN")
        return cls(*parts)


def check_dataset(dataset: str) -> None:
    """Refuse a data set that is not there, as far as a look at this machine's files tells.

    Raises:
        DataError: if it is neither built in nor a file nor of the hub.
    """
    if dataset.startswith("hub:"):
        HubText.parse(dataset)
        return
    if dataset in ("builtin:mixed", "builtin:python"):
        return
    if dataset.startswith("builtin:"):
        raise DataError(f"unknown built-in data set {dataset!r}; there are builtin:mixed and builtin:python")
    check_name(Path(dataset), DataError)
    if not Path(dataset).is_file():
        raise DataError(
            f"no text file at {dataset}; give a .txt, .jsonl or .json file, builtin:mixed, builtin:python, or hub:NAME"
        )


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
        DataError: if it cannot be read, or is in another encoding.
    """
    return utf8(read_plain(path, DataError, limit=_MAX_BYTES), str(path))


def utf8(data: bytes, where: str) -> str:
    """As `read_text`, of bytes; errors call them `where`."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where} is not UTF-8 text (byte {error.start}, in line {line}); convert it first") from error


def _file_rows(path: Path, column: str) -> Iterator[str]:
    text = read_text(path)
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _row_text(_parse_json(line, f"{path}, line {number}"), column, f"{path}, line {number}")
    elif path.suffix == ".json":
        rows = _parse_json(text, str(path))
        if not isinstance(rows, list):
            raise DataError(f"{path} holds a {type(rows).__name__}; wanted a list of texts or of rows with {column!r}")
        for number, row in enumerate(rows):
            yield _row_text(row, column, f"{path}, entry {number}")
    else:
        yield text


def _parse_json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 4,301 digits is a ValueError
        raise DataError(f"{where} is not JSON: {error}") from error


def _row_text(row: object, column: str, where: str) -> str:
    if isinstance(row, str):
        return row
    value = row.get(column) if isinstance(row, dict) else None
    if not isinstance(value, str):
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{where} has no text under {column!r} (it has: {keys}); name the right column")
    return value


def _library_rows(where: str, column: str, *of: Any, **more: Any) -> Iterator[str]:
    """Rows of what `datasets.load_dataset` of these arguments streams."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"reading {where} needs the `datasets` package; pip install 'llmquant[data]'") from error
    try:
        # Before version 4 it ran scripts of data sets, and asked on standard input; later ones have no such argument.
        no_code = {"trust_remote_code": False} if int(datasets.__version__.split(".")[0]) < 4 else {}
        rows = datasets.load_dataset(*of, streaming=True, **more, **no_code)
        for number, row in enumerate(islice(rows, _HUB_DOCUMENTS)):
            yield _row_text(row, column, f"{where}, row {number}")
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read data set {where}: {error}") from error
