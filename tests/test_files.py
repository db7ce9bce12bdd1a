"""What is no plain file, or no sane JSON, ends in an error of the wanted kind, at once."""

import json
import os
from pathlib import Path

import pytest

from llmquant.errors import CheckpointError, OutputError
from llmquant.files import MAX_DEPTH, open_plain, parse_json, read_json, read_plain


def test_a_pipe_a_folder_and_a_device_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path, word in [(tmp_path / "pipe", "pipe"), (tmp_path / "link", "pipe"), (Path("/dev/zero"), "device")]:
        with pytest.raises(CheckpointError, match=f"is not a plain file but a (named )?{word}"):
            open_plain(path)
    with pytest.raises(CheckpointError, match="folder"):
        read_plain(tmp_path)


@pytest.mark.parametrize("name", ["absent", "a\0b", "x" * 300])
def test_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="cannot be read"):
        read_json(tmp_path / name, OutputError)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": ' * 2000 + b"1" + b"}" * 2000,
        b"1" * 5000,
        b'{"a": ' + b"9" * 5000,
    ],
)
def test_text_that_is_no_sane_json(text: bytes) -> None:
    with pytest.raises(CheckpointError, match="it: is not JSON"):
        parse_json(text, "it")


def test_the_limits_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    deep = json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert parse_json(json.dumps(deep).encode(), "it") == deep
    with pytest.raises(CheckpointError, match="nested more than"):
        parse_json(json.dumps([deep]).encode(), "it")
    (tmp_path / "file").write_bytes(b"{} ")
    assert read_plain(tmp_path / "file", limit=3) == b"{} "
    with pytest.raises(CheckpointError, match="more than 2 bytes"):
        read_plain(tmp_path / "file", limit=2)
    (tmp_path / "list").write_text("[1]")
    with pytest.raises(CheckpointError, match="JSON list, an object was expected"):
        read_json(tmp_path / "list")
