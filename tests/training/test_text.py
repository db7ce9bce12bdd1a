"""Where rows for training come from."""

from __future__ import annotations

from pathlib import Path

from llmquant.data.builtin_text import python_documents
from llmquant.engine.prepare import load_tokenizer
from llmquant.training.text import load_rows


def test_the_built_in_text_trains_on_its_own_split_in_mixed_order(repository: Path) -> None:
    tokenizer = load_tokenizer(repository / "examples" / "demo_model")
    rows = load_rows("builtin:python", None, tokenizer, length=64, context=None, wanted=4)
    documents = python_documents("train")
    first, last = (tokenizer.decode(row["input_ids"][1:]) for row in (rows.train[0], rows.valid[-1]))
    assert (len(rows.train), len(rows.valid)) == (4, 1)
    found = [number for number, text in enumerate(documents) if first in text]
    assert found
    assert min(found) > 0  # not the first by name
    assert any(last in text for text in documents)
