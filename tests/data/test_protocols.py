"""Protocols against what GPTQ-style scripts do, written out."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from llmquant.data import protocols
from llmquant.data.protocols import departures, windows_of
from llmquant.errors import DataError

ROWS = ["", " = a title = \n", "", *(f" some words of row {number} <x>\n" for number in range(40))]


@pytest.fixture
def rows_file(tmp_path):
    """The rows as JSON lines."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": row}) for row in ROWS), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "glue"), [("wikitext2", "\n\n"), ("c4", " ")])
def test_rows_are_joined_and_cut_without_bos(name, glue, rows_file, tokenizer) -> None:
    stream = tokenizer(glue.join(ROWS), add_special_tokens=False).input_ids
    windows = windows_of(name, str(rows_file), tokenizer, length=64)
    count = len(stream) // 64
    assert windows.ids.tolist() == [stream[at * 64 : (at + 1) * 64] for at in range(count)]
    assert windows.scored.all()  # 63 predictions in each window, none across
    assert windows.protocol.name == name
    assert windows.protocol.text_tokens == len(stream)
    assert windows.protocol.prefix_tokens == 0


def test_only_the_first_rows_and_windows_of_c4(rows_file, tokenizer, monkeypatch) -> None:
    few = protocols.Joined(text="hub:x", glue=" ", rows=30, windows=5)
    monkeypatch.setitem(protocols.JOINED, "c4", few)
    stream = tokenizer(" ".join(ROWS[:30]), add_special_tokens=False).input_ids
    windows = windows_of("c4", str(rows_file), tokenizer, length=16)
    assert windows.ids.tolist() == [stream[at * 16 : (at + 1) * 16] for at in range(5)]
    assert windows.protocol.text_tokens == len(stream)
    assert len(windows_of("c4", str(rows_file), tokenizer, length=16, max_windows=3)) == 3


def test_wikitexts_own_file_has_a_row_a_line(tmp_path, rows_file, tokenizer) -> None:
    raw = tmp_path / "wiki.test.raw"
    raw.write_text("".join(row or " \n" for row in ROWS), encoding="utf-8")
    one, two = (windows_of("wikitext2", str(path), tokenizer, length=32) for path in (raw, rows_file))
    assert one.protocol.data_hash == two.protocol.data_hash


def test_wikitexts_own_file_in_another_encoding(tmp_path, tokenizer) -> None:
    raw = tmp_path / "wiki.test.raw"
    raw.write_bytes("one\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"wiki.test.raw is not UTF-8 text \(byte 7, in line 2\); convert it first"):
        windows_of("wikitext2", str(raw), tokenizer)


@pytest.mark.parametrize(("bos", "first"), [(None, 0), (True, 0), (False, None)])
def test_bos_where_it_is_asked_for(bos, first, rows_file, tokenizer) -> None:
    windows = windows_of("tokens", str(rows_file), tokenizer, length=16, bos=bos)
    assert windows.protocol.prefix_tokens == (0 if first is None else 1)
    if first is not None:
        assert (windows.ids[:, 0] == first).all()
    assert windows_of("wikitext2", str(rows_file), tokenizer, length=16, bos=True).ids[:, 0].unique().tolist() == [0]


def test_bos_that_the_tokenizer_lacks(rows_file, plain_tokenizer) -> None:
    with pytest.raises(DataError, match="no BOS token"):
        windows_of("tokens", str(rows_file), plain_tokenizer, length=16, bos=True)


def test_lengths_by_default(tmp_path, tokenizer) -> None:
    path = tmp_path / "long.txt"
    path.write_text("ab <c>\n" * 1000, encoding="utf-8")
    for name, context, length in [("tokens", None, 512), ("wikitext2", None, 2048), ("wikitext2", 1024, 1024)]:
        windows = windows_of(name, str(path), tokenizer, context=context)
        assert windows.protocol.length == length
    with pytest.raises(DataError, match="exceed the model's context of 1024"):
        windows_of("wikitext2", str(path), tokenizer, context=1024, length=2048)


def test_what_is_not_as_published_is_said(tmp_path, tokenizer) -> None:
    path = tmp_path / "long.txt"
    path.write_text("ab <c>\n" * 1000, encoding="utf-8")

    def said(name, **more):
        return departures(windows_of(name, str(path), tokenizer, **more).protocol)

    assert said("wikitext2") == said("tokens", length=16) == []
    (cut,) = said("wikitext2", context=256)
    assert cut.startswith("windows of 256, cut from 2048 to the model's context")
    assert said("wikitext2", max_windows=1)[-1].startswith("only the first 1 windows")


def test_a_built_in_text_has_no_published_protocol(tokenizer) -> None:
    with pytest.raises(DataError, match="no text of a published protocol"):
        windows_of("wikitext2", "builtin:mixed", tokenizer)


@pytest.mark.parametrize("name", ["wiki.test.raw", "wiki.test.hfjoin.txt"])
def test_wikitext2_has_the_known_number_of_gpt2_tokens(name, shared_data) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "gpt2")
    windows = windows_of("wikitext2", str(shared_data / "text" / name), tokenizer)
    assert windows.protocol.text_tokens == 287_644
    assert windows.ids.shape == (140, 2048)
