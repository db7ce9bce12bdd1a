"""Files of tasks, as their authors publish them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmquant.errors import DataError
from llmquant.eval.tasks.local import definitions, family
from tests.eval.tasks.conftest import BLIMP, LAMBADA, PIQA, lines


def test_lambada(data: Path) -> None:
    (found,) = definitions("lambada", data / "lambada.jsonl")
    assert found.config["task"] == "lambada_openai"
    assert [row["text"] for row in found.rows] == LAMBADA


def test_piqa_takes_labels_from_the_file_beside_or_from_the_lines(data: Path, tmp_path: Path) -> None:
    (found,) = definitions("piqa", data / "piqa")
    assert [row["label"] for row in found.rows] == [0, 1]
    assert [row["goal"] for row in found.rows] == [goal for goal, *_ in PIQA]
    (tmp_path / "own.jsonl").write_text(lines(found.rows))
    assert definitions("piqa", tmp_path / "own.jsonl")[0].rows == found.rows


def test_blimp_is_all_its_sets_or_the_one_that_is_named(data: Path, tmp_path: Path) -> None:
    archive = data / "blimp.tar.xz"
    found = definitions("blimp", archive)
    assert [each.config["task"] for each in found] == [f"blimp_{name}" for name in BLIMP]
    assert [len(each.rows) for each in found] == [2, 3]
    (one,) = definitions("blimp_wh_island", archive)
    assert one == found[1]
    shutil.unpack_archive(archive, tmp_path, filter="data")
    assert definitions("blimp", tmp_path) == found
    assert definitions("blimp_wh_island", tmp_path / "data" / "wh_island.jsonl") == [one]


@pytest.mark.parametrize(
    ("name", "of"), [("lambada_openai", "lambada"), ("piqa", "piqa"), ("blimp_x", "blimp"), ("blimpy", None)]
)
def test_family(name: str, of: str | None) -> None:
    assert family(name) == of


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("lambada", "a.jsonl", "{", "line 1, is not JSON"),
        ("lambada", "a.jsonl", '{"txt": "a b"}\n', "line 1, lacks one of text"),
        ("lambada", "a.jsonl", "\n\n", "is empty"),
        ("lambada", "a.jsonl", '{"text": "a b"}\n{"text": "word"}\n', "'word' does not end with a word after others"),
        ("lambada", "a.jsonl", '{"text": "   "}\n', "does not end with a word after others"),
        ("lambada", "a.jsonl", '{"text": "Once upon a "}\n', "'Once upon a ' does not end with a word after others"),
        ("lambada", "a.jsonl", b"\xff\xfe", "a.jsonl is not UTF-8 text .* line 1"),
        ("lambada", "a.jsonl", "\n" + "[" * 100_000, "a.jsonl, line 2, is not JSON"),
        ("lambada", "a.jsonl", '{"text": "a b", "n": ' + "9" * 5000 + "}", "a.jsonl, line 1, is not JSON"),
        ("lambada", "a.jsonl", '{"text": "a \\ud800b"}', "a.jsonl, line 1, holds half a surrogate pair"),
        ("blimp", "a.jsonl", b'\n{"sentence_good": "\xe9"}', "a.jsonl is not UTF-8 text .* line 2"),
        ("piqa", "a.jsonl", '{"goal": "g", "sol1": "a", "sol2": "b"}\n', "a-labels.lst is not beside it"),
        ("piqa", "a.jsonl", '{"goal": "g", "sol1": "a", "sol2": "b", "label": 2}\n', "labels of PIQA are 0 or 1"),
        ("blimp_wh_islnd", "wh_island.jsonl", "", "has no set 'wh_islnd'; did you mean 'wh_island'"),
        ("blimp", "blimp.tar", "no archive", "neither a .jsonl file, a folder nor an archive"),
    ],
)
def test_other_files_are_refused(name: str, file: str, text: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        definitions(name, tmp_path / file)


def test_labels_in_another_encoding_are_refused(tmp_path: Path, data: Path) -> None:
    (tmp_path / "valid.jsonl").write_text((data / "piqa" / "valid.jsonl").read_text())
    (tmp_path / "valid-labels.lst").write_bytes(b"0\n\xe9\n")
    with pytest.raises(DataError, match=r"valid-labels.lst is not UTF-8 text .* line 2"):
        definitions("piqa", tmp_path)


def test_a_byte_order_mark_and_other_columns_of_any_type_are_fine(tmp_path: Path) -> None:
    rows = [{"text": "a b", "other": 1}, {"text": "c d", "other": ["x"]}]
    (tmp_path / "a.jsonl").write_text(lines(rows), encoding="utf-8-sig")
    (found,) = definitions("lambada", tmp_path / "a.jsonl")
    assert found.rows == [{"text": "a b"}, {"text": "c d"}]


def test_folders_without_the_file_are_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        definitions("piqa", tmp_path / "piqa")
    with pytest.raises(DataError, match="has 0 files"):
        definitions("piqa", tmp_path)
    with pytest.raises(DataError, match=r"holds no \.jsonl file"):
        definitions("blimp", tmp_path)
    (tmp_path / "valid.jsonl").write_text((data / "piqa" / "valid.jsonl").read_text())
    (tmp_path / "valid-labels.lst").write_text("0\n")
    with pytest.raises(DataError, match="1 labels for 2 questions"):
        definitions("piqa", tmp_path)
