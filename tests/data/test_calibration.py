"""Texts and calibration windows: every kind of file, every way to be wrong, and windows that can be reproduced."""

import gzip
import json
import re
from collections import Counter
from importlib.resources import files

import pytest
import torch
from tokenizers import processors

from llmquant.data.builtin_text import python_documents, split_of
from llmquant.data.calibration import load_calibration, tokens_hash
from llmquant.data.text import read_documents
from llmquant.errors import DataError
from llmquant.recipe.schema import Calibration
from tests.engine.conftest import byte_tokenizer


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_every_kind_of_file(tmp_path):
    lines = "\n".join([json.dumps({"text": "one\u2028still one"}), "", json.dumps("two")])
    assert read_documents(write(tmp_path, "a.jsonl", lines)) == ["one\u2028still one", "two"]
    assert read_documents(write(tmp_path, "a.json", json.dumps(["x", {"text": "y"}, " "]))) == ["x", "y"]
    assert read_documents(write(tmp_path, "a.txt", "plain\ntext")) == ["plain\ntext"]
    assert read_documents(write(tmp_path, "b.jsonl", '{"body": "z"}'), column="body") == ["z"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "fine"}\n{"text": oops}', "line 2 is not JSON"),
        ("a.jsonl", '{"body": "z"}', "no text under 'text' .it has: body."),
        ("a.json", '{"text": "z"}', "holds a dict"),
        ("a.json", "[3]", "entry 0"),
        ("a.txt", "  \n", "holds no text"),
    ],
)
def test_malformed_files(tmp_path, name, content, said):
    with pytest.raises(DataError, match=said):
        read_documents(write(tmp_path, name, content))


def test_missing_binary_and_unknown_sources(tmp_path):
    with pytest.raises(DataError, match="no text file at"):
        read_documents(str(tmp_path / "absent.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 3, in line 1\)"):
        read_documents(str(tmp_path / "latin.txt"))
    with pytest.raises(DataError, match="builtin:python"):
        read_documents("builtin:wiki")


def mixed() -> list[dict[str, str]]:
    packed = (files("llmquant") / "calibration_text" / "mixed.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]


def test_the_mixture_is_mixed_everywhere():
    """1 to 2 MB; any tenth of it has prose and other languages and code, and no kind is more than half."""
    rows = mixed()
    assert [row["text"] for row in rows] == read_documents("builtin:mixed")
    assert 1e6 < sum(len(row["text"].encode()) for row in rows) < 2e6
    sizes = Counter()
    for row in rows:
        sizes[row["kind"]] += len(row["text"].encode())
    assert set(sizes) == {"prose", "languages", "code", "mathematics", "tables", "dialogue"}
    assert max(sizes.values()) < 0.5 * sizes.total()
    tenth = len(rows) // 10
    for start in range(0, len(rows) - tenth, tenth):
        assert {"prose", "languages", "code"} <= {row["kind"] for row in rows[start : start + tenth]}
    with pytest.raises(DataError, match="evaluate on other text"):
        read_documents("builtin:mixed", split="eval")


def test_every_source_of_the_mixture_is_named():
    """Each book by its title, each other kind with its licence."""
    said = (files("llmquant") / "calibration_text" / "SOURCES.md").read_text(encoding="utf-8").lower()
    said = " ".join(said.split())
    titles = {row["source"].split(",")[0].lower() for row in mixed() if row["kind"] == "prose"}
    assert len(titles) == 14
    known = {"a romance of the south seas": "typee", "the tragedy of hamlet": "hamlet"}
    known |= {"jane eyre an autobiography": "jane eyre"}
    for title in titles:
        assert known.get(title, title) in said
    assert {kind for kind in {row["kind"] for row in mixed()} if f"| {kind} |" in said} == {
        "prose", "languages", "code", "mathematics", "tables", "dialogue",
    }  # fmt: skip


def test_evaluation_text_is_not_in_the_mixture(shared_data):
    """No sentence of the texts that evaluations use."""
    held_out = (shared_data / "text" / "gutenberg.valid.txt").read_text() + (
        shared_data / "text" / "wiki.test.hfjoin.txt"
    ).read_text()
    for row in mixed():
        middle = len(row["text"]) // 2
        assert row["text"][middle : middle + 60] not in held_out


def test_builtin_splits_are_disjoint_and_deal_by_name_alone():
    train, calibration, evaluation = (set(python_documents(s)) for s in ("train", "calibration", "eval"))
    assert len(train) > len(calibration) > 5
    assert len(evaluation) > 5
    assert not train & calibration
    assert not (train | calibration) & evaluation
    assert split_of("json/decoder.py") == split_of("json/decoder.py")
    with pytest.raises(DataError, match="unknown split"):
        python_documents("test")  # pyright: ignore[reportArgumentType]


def spec(text_file, **changes):
    return Calibration(**({"dataset": str(text_file), "samples": 6, "length": 40} | changes))


def test_a_built_in_text_is_told():
    """Not a file of the user's."""
    tokenizer = byte_tokenizer()
    for name in ("builtin:mixed", "builtin:python"):
        assert f"the built-in text {name}" in load_calibration(spec(name), tokenizer).note


def test_windows_are_reproducible_begin_with_bos_and_follow_the_seed(text_file):
    tokenizer = byte_tokenizer()
    data = load_calibration(spec(text_file), tokenizer)
    assert data.windows.shape == (6, 40)
    assert data.windows[:, 0].tolist() == [tokenizer.bos_token_id] * 6
    again = load_calibration(spec(text_file), tokenizer)
    assert torch.equal(again.windows, data.windows)
    assert again.sha256 == data.sha256 == tokens_hash(data.windows)
    assert load_calibration(spec(text_file, seed=1), tokenizer).sha256 != data.sha256
    text = text_file.read_text()
    first = tokenizer.decode(data.windows[0], skip_special_tokens=True)
    assert first in text


def test_windows_are_cut_to_the_context_and_say_so(text_file):
    data = load_calibration(spec(text_file), byte_tokenizer(), context=16)
    assert data.windows.shape == (6, 16)
    assert data.note == "windows cut from 40 to the model's context of 16 tokens"


def test_short_documents_are_packed(tmp_path):
    rows = "\n".join(json.dumps({"text": f"story {i}"}) for i in range(40))
    data = load_calibration(spec(write(tmp_path, "s.jsonl", rows), samples=5, length=50), byte_tokenizer())
    assert data.windows.shape == (5, 50)


def test_too_little_text_is_counted(tmp_path):
    with pytest.raises(DataError, match="gives 7 tokens of text, but 6 samples of 40 need 234"):
        load_calibration(spec(write(tmp_path, "s.txt", "short")), byte_tokenizer())


def test_a_context_without_place_for_text_is_refused(text_file):
    with pytest.raises(DataError, match=r"takes 1 at once\) have no place for text"):
        load_calibration(spec(text_file), byte_tokenizer(), context=1)


def test_bos_stands_at_the_start_of_each_window_and_nowhere_else(tmp_path):
    # Documents shorter than a window, so that windows cross from one to the next; some spell the token out.
    rows = "\n".join(json.dumps({"text": f"<s> story {i} <s>"}) for i in range(60))
    tokenizer = byte_tokenizer()
    windows = load_calibration(spec(write(tmp_path, "s.jsonl", rows), samples=9, length=40), tokenizer).windows
    bos = tokenizer.bos_token_id
    assert windows[:, 0].tolist() == [bos] * 9
    assert bos not in windows[:, 1:]
    text = str(tokenizer.decode(windows[:, 1:].flatten()))
    assert re.fullmatch(r"( story \d+ \n\n)*", text[: text.rindex("\n\n") + 2])


def test_a_prefix_of_several_tokens_stands_at_the_start_and_nowhere_else(tmp_path):
    """As [gMASK]<sop> of GLM, which knows no BOS token; something behind the text is not part of it."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<p>"]})
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "<p>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<p> <s> $A <p>", special_tokens=special
    )
    tokenizer.bos_token = None
    rows = "\n".join(json.dumps({"text": f"<s> story {i} <p>"}) for i in range(60))
    windows = load_calibration(spec(write(tmp_path, "s.jsonl", rows), samples=9, length=40), tokenizer).windows
    bos, prefix = special[0][1], special[1][1]
    assert windows[:, :2].tolist() == [[prefix, bos]] * 9
    assert not torch.isin(windows[:, 2:], torch.tensor([prefix, bos])).any()
    with pytest.raises(DataError, match=r"windows of 2 tokens .* behind the 2 that the tokenizer puts"):
        load_calibration(spec(write(tmp_path, "s.jsonl", rows)), tokenizer, context=2)


def test_a_tokenizer_without_bos_gives_text_alone(text_file):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    windows = load_calibration(spec(text_file), tokenizer).windows
    assert windows.shape == (6, 40)
    assert str(tokenizer.decode(windows[0])) in text_file.read_text()
