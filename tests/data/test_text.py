"""Rows of files and data sets, and what a data set's name may be."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmquant.data.text import HubText, read_documents, read_rows
from llmquant.errors import DataError

ROWS = ["first\n", "", " third"]


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("hub:org/name", ("org/name", "", "", "")),
        ("hub:name:config", ("name", "config", "", "")),
        ("hub:org/name:config:test:prose", ("org/name", "config", "test", "prose")),
        ("hub:org/name:::prose", ("org/name", "", "", "prose")),
    ],
)
def test_parts_of_a_hub_name(word, parts) -> None:
    assert HubText.parse(word) == parts


@pytest.mark.parametrize("word", ["hub:", "hub::config", "hub:a:b:c:d:e"])
def test_a_hub_name_that_says_nothing_is_refused(word) -> None:
    with pytest.raises(DataError, match="write hub:NAME or hub:NAME:CONFIG:SPLIT:COLUMN"):
        read_rows(word)


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """A folder as the hub stores it: two configurations, two splits, another column than "text"."""
    for name, texts in (("small", ROWS), ("large", ["other"])):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            lines = [json.dumps({"prose": f"{text}{split}" if text else ""}) for text in texts]
            (tmp_path / name / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    files = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {name}/{split}.jsonl\n" for split in ("train", "test"))
        for name in ("small", "large")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{files}---\n", encoding="utf-8")
    return tmp_path


def test_config_split_and_column_of_a_data_set(data_set) -> None:
    pytest.importorskip("datasets")
    assert list(read_rows(f"hub:{data_set}:small:test:prose")) == ["first\ntest", "", " thirdtest"]
    assert list(read_rows(f"hub:{data_set}:large", column="prose")) == ["othertrain"]
    assert read_documents(f"hub:{data_set}:small::prose", split="test") == ["first\ntest", " thirdtest"]
    with pytest.raises(DataError, match=r"has no text under 'text' \(it has: prose\)"):
        list(read_rows(f"hub:{data_set}:small"))
    with pytest.raises(DataError, match="cannot read data set"):
        list(read_rows(f"hub:{data_set}:none"))


def test_compressed_rows_as_hubs_store_them(tmp_path) -> None:
    pytest.importorskip("datasets")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ROWS}), tmp_path / "rows.parquet")
    with gzip.open(tmp_path / "c4-validation.00000-of-00008.json.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in ROWS)
    for name in ("rows.parquet", "c4-validation.00000-of-00008.json.gz"):
        assert list(read_rows(str(tmp_path / name))) == ROWS
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(DataError, match=r"cannot read data set .*damaged\.parquet"):
        list(read_rows(str(tmp_path / "damaged.parquet")))


@pytest.mark.parametrize(("version", "code"), [("2.21.0", False), ("3.6.0", False), ("4.0.0", "no such argument")])
def test_hub_data_sets_are_streamed(version, code, monkeypatch) -> None:
    asked = []

    def load_dataset(name, config, split, streaming, trust_remote_code="no such argument"):
        asked.append((name, config, split, streaming))
        assert trust_remote_code == code
        if name == "gone":
            raise FileNotFoundError("no such data set")
        return iter([{"text": "one"}, {"text": "two"}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, __version__=version))
    assert read_documents("hub:org/set", split="validation") == ["one", "two"]
    assert asked == [("org/set", None, "validation", True)]
    with pytest.raises(DataError, match="cannot read data set hub:gone"):
        read_documents("hub:gone")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"llmquant\[data\]"):
        read_documents("hub:org/set")


def test_a_byte_order_mark_is_no_text(tmp_path) -> None:
    for name, content in [("a.txt", "some words"), ("a.jsonl", '{"text": "some words"}\n')]:
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert read_documents(str(tmp_path / name)) == ["some words"]
